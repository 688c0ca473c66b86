"""Rollout workers that come and go while a run of real parts goes on: at every step, by autoscaler, by drain."""

import time
from pathlib import Path
from statistics import median

from services.control.ledger_events import Dispatched, Joined, Left, Other, Requeued
from tests.end_to_end.command import Running, json_lines, started, trireme, write_config
from tests.end_to_end.faults import (
    DRAINED_WITHIN_S,
    came,
    events,
    has_served,
    operator_of,
    steps_done,
    violations,
    weights,
)
from tests.end_to_end.tiny_run import long_run_sections

NUM_CHANGES = 30
SETTLES_EVERY = 10
"""Changes of which only the last is given the time that a new worker takes to start, which is longer than a step."""


def change_workers(running: Running, run: Path, num_workers: int, *, settles: bool) -> None:
    """Ask for so many workers and let a step pass; `settles` holds the run until just they are there, and serve."""
    step = steps_done(run)
    with operator_of(run) as operator:
        operator.scale(num_workers)
        if settles:
            operator.pause()
            all_serve = ["serving"] * num_workers
            running.wait_until(
                lambda: [worker.phase for worker in operator.status().workers] == all_serve, f"{num_workers} workers"
            )
            operator.resume()
    running.wait_until(lambda: steps_done(run) > step, "a step")


def test_the_number_of_workers_changes_at_every_step_and_no_weight_does(
    undisturbed_long: Path, task: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = write_config(tmp_path / "run.yaml", **long_run_sections(task))
    with started("train", config, cwd=tmp_path) as running:
        running.wait_until(lambda: steps_done(run) >= 2, "two steps")
        assert trireme("scale", str(run), "rollout_workers", "3", cwd=tmp_path).code == 0
        for change in range(1, NUM_CHANGES + 1):
            change_workers(running, run, (2, 1, 3)[change % 3], settles=change % SETTLES_EVERY == 0)
        finished = running.finish()
    assert finished.code == 0, finished.output
    assert weights(run) == weights(undisturbed_long)
    assert violations(run) == {}
    served = {event.worker for event in events(run, Dispatched)}
    seconds = [float(str(row["seconds/step"])) for row in json_lines(run / "metrics.jsonl")]
    slow = sum(second > 2 * median(seconds) for second in seconds)
    print(f"{len(events(run, Joined))} joined, {len(served)} served, {len(events(run, Left))} left")
    print(f"longest step: {max(seconds) / median(seconds):.2f} medians; {slow} of {len(seconds)} above two")
    assert len(served) >= 3


def test_the_autoscaler_brings_a_worker_and_an_operator_who_takes_it_away_ends_none_of_its_work(
    task: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    sections = long_run_sections(
        task,
        rollout={"max_workers": 2},
        train={"max_staleness": 1, "num_steps": 10_000},
        autoscale={"enabled": True, "target_learner_wait": 0.01, "settle_steps": 3},
    )
    with started("train", write_config(tmp_path / "run.yaml", **sections), cwd=tmp_path) as running:
        running.wait_until(lambda: has_served(run, 1), "the autoscaler's worker to serve")
        asked = time.time()
        with operator_of(run) as operator:
            operator.scale(1)
            left = came(running, run, Left, since=asked)
            operator.drain()
        finished = running.finish()
    assert finished.code == 0, finished.output
    assert "autoscaler: 2 rollout workers, one more, as the learner waits for them" in finished.output
    assert left.worker == 1
    assert left.time - asked <= DRAINED_WITHIN_S
    lowered = next(event.time for event in events(run, Other, since=asked) if event.event == "scaled")
    assert [event for event in events(run, Dispatched, since=lowered) if event.worker == 1] == []
    assert events(run, Requeued) == []
    assert violations(run) == {}
