"""The command itself is killed, or told to stop, on real parts: nothing lives on, and a resume accounts for all."""

import json
import random
import signal
import time
from pathlib import Path

from services.control import run_folder, run_state
from services.control.ledger_events import RunEnded, Trained
from tests.end_to_end.command import Finished, started, trireme, write_config
from tests.end_to_end.faults import (
    RESTORED_WITHIN_S,
    came,
    events,
    operator_of,
    status,
    steps_done,
    violations,
    weights,
)
from tests.end_to_end.tiny_run import long_run_sections

SEED = 7


def killed_at(step: int, *arguments: str, folder: Path) -> Finished:
    """Kill `trireme ARGUMENTS` as soon as `step` is done; `finish` sees to it that its processes follow at once."""
    with started(*arguments, cwd=folder) as running:
        running.wait_until(lambda: steps_done(folder / "run") >= step, f"step {step}")
        running.kill()
        return running.finish()


def test_a_synchronous_run_that_is_killed_goes_on_to_the_same_weights(
    undisturbed_long: Path, task: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "run.yaml", **long_run_sections(task))
    killed = killed_at(random.Random(SEED).randint(6, 30), "train", config, folder=tmp_path)
    assert killed.code == -signal.SIGKILL
    resumed = trireme("train", config, "--resume", cwd=tmp_path)
    assert resumed.code == 0, resumed.output
    assert weights(tmp_path / "run") == weights(undisturbed_long)
    assert violations(tmp_path / "run") == {}


def test_an_asynchronous_run_that_is_killed_twice_trains_each_prompt_once(task: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sections = long_run_sections(task, train={"max_staleness": 2, "num_steps": 30})
    config = write_config(tmp_path / "run.yaml", **sections)
    points = random.Random(SEED)
    killed_at(points.randint(6, 14), "train", config, folder=tmp_path)
    killed_at(points.randint(16, 25), "train", config, "--resume", folder=tmp_path)
    resumed_at = time.time()
    with started("train", config, "--resume", cwd=tmp_path) as running:
        assert came(running, run, Trained, since=resumed_at).time - resumed_at <= RESTORED_WITHIN_S
        finished = running.finish()
    assert finished.code == 0, finished.output
    assert steps_done(run) == 30
    assert violations(run) == {}


def test_an_asynchronous_run_keeps_what_was_under_way_through_sigterm_and_ctrl_c(task: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sections = long_run_sections(task, train={"max_staleness": 1, "num_steps": 20, "checkpoint_every": 0})
    config = write_config(tmp_path / "run.yaml", **sections)
    resume: tuple[str, ...] = ()
    for number, step in ((signal.SIGTERM, 3), (signal.SIGINT, 9)):
        with started("train", config, *resume, cwd=tmp_path) as running:
            running.wait_until(lambda step=step: steps_done(run) >= step, f"step {step}")
            running.interrupt(number)
            finished = running.finish()
        assert finished.code == 130, finished.output
        saved, state, faults = run_state.newest(run / run_folder.CHECKPOINTS)
        assert faults == []
        assert state.step == steps_done(run)
        waiting = (saved / run_state.WAITING_FILE).read_text().splitlines()
        assert len(state.running) + len(waiting) > 0
        resume = ("--resume",)
    finished = trireme("train", config, *resume, cwd=tmp_path)
    assert finished.code == 0, finished.output
    assert [event.how for event in events(run, RunEnded)] == ["interrupted", "interrupted", "finished"]
    assert violations(run) == {}


def test_a_run_is_paused_saved_resumed_and_drained_by_its_operator(task: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sections = long_run_sections(task, train={"max_staleness": 1, "num_steps": 40, "checkpoint_every": 0})
    config = write_config(tmp_path / "run.yaml", **sections)
    with started("train", config, cwd=tmp_path) as running:
        running.wait_until(lambda: steps_done(run) >= 2, "two steps")
        assert trireme("pause", str(run), cwd=tmp_path).code == 0
        shown = json.loads(trireme("status", str(run), "--json", cwd=tmp_path).output)
        assert shown["phase"] == "paused"
        running.wait_until(lambda: status(run).num_running == 0, "the prompts under way to end")
        paused_at = status(run).step
        saved = trireme("checkpoint", str(run), cwd=tmp_path)
        assert saved.code == 0
        assert f"step_{paused_at}" in saved.output
        assert status(run).step == paused_at
        with operator_of(run) as operator:
            operator.resume()
        running.wait_until(lambda: status(run).step >= paused_at + 2, "the run to go on")
        with operator_of(run) as operator:
            operator.drain()
        drained = running.finish()
    assert drained.code == 0, drained.output
    assert paused_at + 2 <= steps_done(run) < 40
    resumed = trireme("train", config, "--resume", cwd=tmp_path)
    assert resumed.code == 0, resumed.output
    assert [event.how for event in events(run, RunEnded)] == ["drained", "finished"]
    assert steps_done(run) == 40
    assert violations(run) == {}
