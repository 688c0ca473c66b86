"""A run whose number of workers never stops changing: its longest step against its median, and both against no change.

`trireme train`, asynchronous, asked through its own control service for another number of workers after a step, and for
the next as soon as just so many serve, until its end. Nothing may be lost: `trireme verify` must find every promise
kept. A worker that starts takes a core for many seconds, which on a machine of few cores the learner lacks meanwhile.

    python -m benchmarks.changing_workers [--steps 30] [--prompts-per-step 16] [--output results.json]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

from benchmarks.pairs import Ratio, report
from benchmarks.reference_task import TrainRun, steps_done, train, verify, wait_for_step, write_task
from services.contracts.run_status import RunStatus
from services.transport.control_client import connect, find_run

NUMBERS = (3, 1, 2)
"""Of workers, asked for in turn."""
STEP_TIMEOUT_S = CHANGE_TIMEOUT_S = 600.0
FIRST_STEPS = 2
"""Which fill the pipeline, and are not counted."""


def changing(num_steps: int) -> Callable[[Path], None]:
    """Changes the number of workers until step `num_steps` is next."""

    def during(run: Path) -> None:
        for number in cycle(NUMBERS):
            step = steps_done(run) + 1
            if step >= num_steps:
                return
            wait_for_step(run, step, timeout_s=STEP_TIMEOUT_S)
            with connect(find_run(str(run)), timeout_s=15.0) as client:
                client.scale(number)
                deadline = time.monotonic() + CHANGE_TIMEOUT_S
                while steps_done(run) < num_steps - 1 and serving(client.status()) != number:
                    if time.monotonic() > deadline:
                        raise SystemExit(f"{number} workers did not serve within {CHANGE_TIMEOUT_S:g} s; see {run}")
                    time.sleep(0.5)

    return during


def serving(status: RunStatus) -> int:
    """How many workers serve; 0 as long as one is about to or about to leave."""
    return len(status.workers) if all(worker.phase == "serving" for worker in status.workers) else 0


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


def in_medians(run: TrainRun) -> list[float]:
    """The seconds of each step after the first ones, in medians of these."""
    median = run.median("seconds/step", skip=FIRST_STEPS)
    return [step["seconds/step"] / median for step in run.steps[FIRST_STEPS:]]


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
        "longest step, in medians": max(in_medians(changed)),
        "longest step without changes, in medians": max(in_medians(steady)),
        f"steps of {arguments.steps} above two medians": sum(step > 2 for step in in_medians(changed)),
        "workers that joined": count["joined"],
        "workers that left": count["left"],
    }
    report([ratio], output=arguments.output, facts=facts)


if __name__ == "__main__":
    main()
