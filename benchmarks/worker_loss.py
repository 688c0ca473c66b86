"""Row 8: accepted tokens per second in the 10 steps after one of 4 workers is killed ÷ ¾ of the same without a fault.

`trireme train` with 4 workers, asynchronous; once a step is there, one worker's process gets SIGKILL. Nothing may be
lost: the run's own check (`trireme verify`) must find every promise kept, and every prompt admitted before the kill
must be trained. A run with the kill and one without, in turn, over the same steps. On a machine of few cores the
learner is the bottleneck of that run, whatever the workers do; so beside it the real control plane runs on workers and
a learner that sleep, where sampling is the bottleneck and the lost worker is not replaced.

    python -m benchmarks.worker_loss [--pairs 2] [--kill-at 6] [--prompts-per-step 8] [--output results.json]
"""

import argparse
import asyncio
import os
import random
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pairs import Ratio, report
from benchmarks.reference_task import (
    NUM_PROMPTS,
    Sections,
    TrainRun,
    read_lines,
    train,
    verify,
    wait_for_step,
    write_task,
)
from benchmarks.sleeping_run import SleepingLearner, SleepingWorker, run_steps
from services.control.admission import AdmissionRule

NUM_STEPS_AFTER = 10
NUM_WORKERS = 4
STEP_TIMEOUT_S = 600.0
SLEEPING_GROUP_S, SLEEPING_LEARNER_S, SLEEPING_LOAD_S = (0.3, 0.5), 0.02, 0.01
SLEEPING_GROUPS_AT_ONCE = 8
SLEEPING_PAIRS = 5

Event = Mapping[str, Any]  # Any: an event's fields


def serving_pid(events: Sequence[Event]) -> int:
    """The process of the newest worker that joined and has not left."""
    pids = {event["worker"]: event["pid"] for event in events if event["event"] == "joined"}
    gone = {event["worker"] for event in events if event["event"] == "left"}
    return int(pids[max(pids.keys() - gone)])


def lost_prompts(events: Sequence[Event], *, killed_at: float) -> list[str]:
    """Prompts admitted before the kill that were never trained."""
    trained = {event["prompt"] for event in events if event["event"] == "trained"}
    admitted = [event["prompt"] for event in events if event["event"] == "admitted" and event["time"] < killed_at]
    return [prompt for prompt in admitted if prompt not in trained]


def rate(run: TrainRun, *, after: int) -> float:
    """Accepted tokens per second in the steps after step `after`."""
    counted = run.steps[after : after + NUM_STEPS_AFTER]
    assert len(counted) == NUM_STEPS_AFTER, f"{len(counted)} steps after step {after}"
    tokens = sum(step["tokens_per_second"] * step["seconds/step"] for step in counted)
    return tokens / sum(step["seconds/step"] for step in counted)


def run_once(folder: Path, *, kill_at: int, kill: bool, prompts_per_step: int) -> TrainRun:
    changes: Sections = {
        # Two more, so that what was admitted before the kill is trained before the end.
        "train": {"num_steps": kill_at + NUM_STEPS_AFTER + 2, "max_staleness": 1, "prompts_per_step": prompts_per_step},
        "rollout": {"num_workers": NUM_WORKERS, "kv_cache_gib": 0.25},
        "cluster": {"cpus_per_learner_rank": 1},
    }

    def during(run: Path) -> None:
        wait_for_step(run, kill_at, timeout_s=STEP_TIMEOUT_S)
        if kill:
            os.kill(serving_pid(read_lines(run / "events.jsonl")), signal.SIGKILL)

    return train(folder, changes, during=during)


def assert_nothing_lost(run: TrainRun) -> None:
    left = [event for event in run.events if event["event"] == "left"]
    assert left, "no worker left after the kill"
    lost = lost_prompts(run.events, killed_at=left[0]["time"])
    assert not lost, f"{len(lost)} prompts admitted before the kill were not trained: {lost[:5]}"
    verify(run.folder)


def measure(arguments: argparse.Namespace, folder: Path) -> Ratio:
    with_fault, without = [], []
    for _ in range(arguments.pairs):
        run = run_once(folder, kill_at=arguments.kill_at, kill=True, prompts_per_step=arguments.prompts_per_step)
        assert_nothing_lost(run)
        with_fault.append(rate(run, after=arguments.kill_at))
        undisturbed = run_once(
            folder, kill_at=arguments.kill_at, kill=False, prompts_per_step=arguments.prompts_per_step
        )
        share = (NUM_WORKERS - 1) / NUM_WORKERS
        without.append(share * rate(undisturbed, after=arguments.kill_at))
    return Ratio(name="8 after a kill ÷ ¾ of no fault", unit="tokens/s", ours=with_fault, theirs=without, aim=0.9)


async def sleeping_steps(folder: Path, *, kill_at: int, kill: bool) -> float:
    """Steps per second after step `kill_at`."""
    draw = random.Random(0)
    # No long tail, in which a step would wait for its last sample and not for room at a worker.
    workers = [
        SleepingWorker(number, seconds=lambda: draw.uniform(*SLEEPING_GROUP_S), load_s=lambda: SLEEPING_LOAD_S)
        for number in range(NUM_WORKERS)
    ]

    def after_step(step: int) -> None:
        if kill and step == kill_at:
            workers[-1].killed.set()

    steps = await run_steps(
        folder,
        workers,
        SleepingLearner(lambda: SLEEPING_LEARNER_S),
        AdmissionRule(prompts_per_step=NUM_PROMPTS, max_staleness=1),
        num_steps=kill_at + NUM_STEPS_AFTER,
        max_outstanding=SLEEPING_GROUPS_AT_ONCE,
        after_step=after_step,
    )
    return NUM_STEPS_AFTER / sum(step.seconds["step"] for step in steps[kill_at:])


def measure_sleeping(kill_at: int) -> Ratio:
    rates: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(SLEEPING_PAIRS):
        for kill in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                rates[kill].append(asyncio.run(sleeping_steps(Path(folder), kill_at=kill_at, kill=kill)))
    share = (NUM_WORKERS - 1) / NUM_WORKERS
    return Ratio(
        name="8 (sleeping) after a kill ÷ ¾ of no fault", unit="samples/s", aim=0.9,
        ours=[8 * NUM_PROMPTS * rate for rate in rates[True]],
        theirs=[share * 8 * NUM_PROMPTS * rate for rate in rates[False]],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--kill-at", type=int, default=6)
    parser.add_argument("--prompts-per-step", type=int, default=8)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        write_task(Path(temporary), 2 * (arguments.kill_at + NUM_STEPS_AFTER))
        ratios = [measure_sleeping(arguments.kill_at), measure(arguments, Path(temporary))]
    report(ratios, output=arguments.output)


if __name__ == "__main__":
    main()
