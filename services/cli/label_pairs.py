"""Have a judge compare completions of the same prompts, and write preference data (RLAIF)."""

from services.cli.arguments import load_config
from services.cli.judging_job import run_job, tell_cost
from services.control.pair_labels import PREFERENCES_FILE, LabelConfig, label


def main(argv: list[str]) -> int:
    """`trireme label-pairs config.yaml [--section.key value ...]`"""
    config = load_config(
        LabelConfig,
        argv,
        prog="trireme label-pairs",
        summary="Judge pairs of completions in both orders; write those on which the judge agrees with itself.",
    )
    labelled = run_job(label(config, tell=print), config.run.dir)
    found = labelled.statistics
    print(f"preferences      {found.decided}, in {config.run.dir / PREFERENCES_FILE}")
    print(f"orders agree     {found.agreement}")
    print(f"chose answer A   {found.chose_a}{'; the order moves this judge' if found.chose_a.leans else ''}")
    print(f"chose the longer {found.chose_longer}{'; see to length' if found.chose_longer.leans else ''}")
    tell_cost(labelled.counts, labelled.num_failed)
    return 0
