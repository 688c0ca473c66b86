"""A run whose number of workers changes at every step: its longest step against its median, and both against no change.

`trireme train`, asynchronous, with another number of workers asked for after each step, through the run's own control
service. Nothing may be lost: `trireme verify` must find every promise kept. A worker that starts takes half a minute of
one core, which on a machine of few cores the learner lacks meanwhile.

    python -m benchmarks.changing_workers [--steps 30] [--prompts-per-step 16] [--output results.json]
"""

import argparse
import tempfile
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

from benchmarks.pairs import Ratio, report
from benchmarks.reference_task import TrainRun, train, verify, wait_for_step, write_task
from services.transport.control_client import connect, find_run

NUMBERS = (3, 1, 2)
"""Of workers, asked for in turn."""
STEP_TIMEOUT_S = 600.0
FIRST_STEPS = 2
"""Which fill the pipeline, and are not counted."""


def changing(num_steps: int) -> Callable[[Path], None]:
    """Asks for another number of workers after each step but the last."""

    def during(run: Path) -> None:
        for step, number in zip(range(1, num_steps), cycle(NUMBERS), strict=False):
            wait_for_step(run, step, timeout_s=STEP_TIMEOUT_S)
            with connect(find_run(str(run)), timeout_s=15.0) as client:
                client.scale(number)

    return during


def run_once(folder: Path, arguments: argparse.Namespace, during: Callable[[Path], None]) -> TrainRun:
    num_steps = arguments.steps + FIRST_STEPS
    changes = {
        "train": {"num_steps": num_steps, "max_staleness": 1, "prompts_per_step": arguments.prompts_per_step},
        "rollout": {"kv_cache_gib": 0.25},
        "cluster": {"cpus_per_learner_rank": 1},
    }
    run = train(folder, changes, during=during)
    verify(run.folder)
    return run


def seconds(run: TrainRun) -> list[float]:
    return [step["seconds/step"] for step in run.steps[FIRST_STEPS:]]


def longest_over_median(run: TrainRun) -> float:
    return max(seconds(run)) / run.median("seconds/step", skip=FIRST_STEPS)


def above_twice_the_median(run: TrainRun) -> int:
    return sum(step > 2 * run.median("seconds/step", skip=FIRST_STEPS) for step in seconds(run))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--prompts-per-step", type=int, default=16)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_task(folder, arguments.steps + 2 * FIRST_STEPS)
        changed = run_once(folder, arguments, changing(arguments.steps + FIRST_STEPS))
        steady = run_once(folder, arguments, lambda run: None)
    count = {name: sum(event["event"] == name for event in changed.events) for name in ("joined", "left")}
    ratio = Ratio(
        name="steps/s with changes ÷ without", unit="steps/h", aim=1.0,
        ours=[3600 / changed.median("seconds/step", skip=FIRST_STEPS)],
        theirs=[3600 / steady.median("seconds/step", skip=FIRST_STEPS)],
    )  # fmt: skip
    facts = {
        "longest step, in medians": longest_over_median(changed),
        "longest step without changes, in medians": longest_over_median(steady),
        f"steps of {arguments.steps} above two medians": above_twice_the_median(changed),
        "workers that joined": count["joined"],
        "workers that left": count["left"],
    }
    report([ratio], output=arguments.output, facts=facts)


if __name__ == "__main__":
    main()
