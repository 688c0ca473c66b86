"""Have a judge criticise and revise answers by a constitution, and write demonstrations and preference data."""

from collections import Counter

from services.cli.arguments import load_config
from services.cli.judging_job import run_job, tell_cost
from services.control.revisions import ReviseConfig, revise_drafts


def main(argv: list[str]) -> int:
    """`trireme revise config.yaml [--section.key value ...]`"""
    config = load_config(
        ReviseConfig,
        argv,
        prog="trireme revise",
        summary="Critique and revise answers by the principles of a constitution (Constitutional AI).",
    )
    revised = run_job(revise_drafts(config, tell=print), config.run.dir)
    changed = [outcome for outcome in revised.outcomes if outcome.revision is not None]
    num_better = sum(outcome.better is not None for outcome in changed)
    print(f"revised          {len(changed)} of {len(revised.outcomes)} drafts, {num_better} for the better")
    for principle, count in Counter(name for outcome in revised.outcomes for name in outcome.violated).most_common():
        print(f"violated         {principle}: {count} times")
    print(f"written to       {config.run.dir}")
    tell_cost(revised.counts, revised.num_failed)
    return 0
