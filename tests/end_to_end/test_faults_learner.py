"""A learner rank that is killed or freezes, on real parts: all ranks start anew while the rollout workers live on."""

import os
import signal
import time
from pathlib import Path

from services.control import run_folder
from services.control.ledger_events import Joined, LearnerLost, LearnerRestarted, Trained
from tests.end_to_end.command import TIMEOUT_S, Running, started, write_config
from tests.end_to_end.faults import (
    RESTORED_WITHIN_S,
    came,
    events,
    ranks,
    steps_done,
    violations,
    weights,
    workers,
)
from tests.end_to_end.tiny_run import SAVE_EVERY, long_run_sections


def wait_for_a_save(run: Path) -> None:
    """Return as soon as a checkpoint is being written."""
    folder = run / run_folder.CHECKPOINTS
    deadline = time.monotonic() + TIMEOUT_S
    while not any(folder.glob(".step_*.partial/learner")):
        assert time.monotonic() < deadline, f"no checkpoint was written for {TIMEOUT_S} s"


def lose_a_rank(running: Running, run: Path, number: signal.Signals, *, in_a_save: bool = False) -> None:
    """Send a rank a signal; it takes no longer than the bound until the run trains again, with the workers it had."""
    before = workers(run)
    rank, step = ranks(running)[-1], steps_done(run)
    if in_a_save:
        wait_for_a_save(run)
    lost = time.time()
    os.kill(rank, number)
    came(running, run, LearnerLost, since=lost)
    restarted = came(running, run, LearnerRestarted, since=lost)
    assert restarted.step >= step - SAVE_EVERY - 1
    assert came(running, run, Trained, since=restarted.time).time - lost <= RESTORED_WITHIN_S
    assert workers(run) == before


def test_a_learner_that_is_killed_goes_on_from_its_checkpoint_to_the_same_weights(
    undisturbed_long: Path, task: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = write_config(tmp_path / "run.yaml", **long_run_sections(task))
    with started("train", config, cwd=tmp_path) as running:
        running.wait_until(lambda: steps_done(run) >= SAVE_EVERY + 2, "a checkpoint and a step")
        lose_a_rank(running, run, signal.SIGKILL)
        finished = running.finish()
    assert finished.code == 0, finished.output
    assert len(events(run, Joined)) == 1
    assert weights(run) == weights(undisturbed_long)
    assert violations(run) == {}


def test_two_ranks_of_which_one_is_killed_in_a_save_and_later_one_freezes_start_anew_together(
    task: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    sections = long_run_sections(
        task,
        learner={"num_ranks": 2, "zero_stage": 2},
        train={"max_staleness": 1, "num_steps": 24},
    )
    with started("train", write_config(tmp_path / "run.yaml", **sections), cwd=tmp_path) as running:
        running.wait_until(lambda: steps_done(run) >= SAVE_EVERY + 2, "a checkpoint and a step")
        lose_a_rank(running, run, signal.SIGKILL, in_a_save=True)
        running.wait_until(lambda: steps_done(run) >= SAVE_EVERY + 2, "further steps")
        lose_a_rank(running, run, signal.SIGSTOP)
        finished = running.finish()
    assert finished.code == 0, finished.output
    assert violations(run) == {}
