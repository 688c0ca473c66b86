"""Train a policy by reinforcement learning."""

import shlex
import time

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.cli.arguments import load_config, take_switch
from services.cli.held_run import print_resume, run_in_folder
from services.cli.plan import print_plan
from services.control import run_folder
from services.control.config import RunConfig
from services.control.evaluate_config import MAIN
from services.control.evaluation import Evaluation, GradedCompletion
from services.control.preflight import check_training
from services.control.reward_preflight import check_reward_services, unanswered
from services.control.training import Outcome, train
from services.control.visible_text import visible
from services.transport.tracing import set_up_tracing

_NUM_EXAMPLES = 5
_LONGEST_EXAMPLE = 300


def main(argv: list[str]) -> int:
    """`trireme train run.yaml [--section.key value ...] [--dry-run] [--resume]`"""
    started = time.monotonic()
    dry_run, argv = take_switch(argv, "--dry-run")
    resume, argv = take_switch(argv, "--resume")
    config = load_config(
        RunConfig,
        argv,
        prog="trireme train",
        summary="Reinforcement learning. --dry-run: show the plan, start nothing. "
        "--resume: go on from the newest checkpoint in run.dir.",
        switches=("--dry-run", "--resume"),
    )
    inputs = check_training(config)
    if dry_run:
        check_reward_services(config)
        absent = unanswered(config)
        print_plan(config, inputs)
        for line in absent:
            print(line)
        return 0
    set_up_tracing("trireme")
    outcomes: list[Outcome] = []

    def work() -> bool:
        outcomes.append(train(config, inputs, resume=resume, started=started))
        return outcomes[0].interrupted

    code = run_in_folder(config, argv, command="trireme train", resume=resume, work=work)
    if code == 0 and outcomes[0].drained:
        print(f"drained after step {outcomes[0].summary['num_steps']} of {config.train.num_steps}")
        print_resume(config.run.dir, f"trireme train {shlex.join(argv)}")
    elif code == 0:
        _print_outcome(config, outcomes[0])
        if outcomes[0].breach is not None:
            print_resume(config.run.dir, f"trireme train {shlex.join(argv)}")
            raise outcomes[0].breach
    return code


def _print_outcome(config: RunConfig, outcome: Outcome) -> None:
    folder = config.run.dir
    if outcome.before is not None and outcome.after is not None:
        _print_completions(outcome.before, outcome.after)
    before, after = outcome.summary["accuracy_before"], outcome.summary["accuracy_after"]
    if isinstance(before, float) and isinstance(after, float):
        print(f"held-out accuracy  {before:.1%} before, {after:.1%} after")
    for comparison in outcome.comparisons:
        if comparison.name != MAIN or comparison.gate is not None:
            print(f"suite              {comparison}")
    print(f"steps              {outcome.summary['num_steps']} in {outcome.summary['seconds']:.0f} s")
    print(f"curves             {folder / 'curves.png'}")
    print(f"report             {folder / 'report.html'}")
    print(f"summary            {folder / run_folder.SUMMARY_FILE}")
    print(f"export             {folder / run_folder.EXPORT} (Hugging Face format, for transformers and vLLM)")
    print("your own model     trireme train run.yaml --model.path MODEL --data.prompts DATA.jsonl --run.dir runs/mine")


def _print_completions(before: Evaluation, after: Evaluation) -> None:
    table = Table(title="Held-out prompts, greedy", title_justify="left")
    for column in ("prompt", "before", "", "after", ""):
        table.add_column(column, overflow="fold")
    for old, new in list(zip(before.completions, after.completions, strict=True))[:_NUM_EXAMPLES]:
        table.add_row(_shown(old.prompt), _shown(old.completion), _mark(old), _shown(new.completion), _mark(new))
    Console().print(table)


def _shown(text: str) -> str:
    return escape(visible(text if len(text) <= _LONGEST_EXAMPLE else f"…{text[-_LONGEST_EXAMPLE:]}"))


def _mark(graded: GradedCompletion) -> str:
    return "[green]✓[/]" if graded.correct else "[red]✗[/]"
