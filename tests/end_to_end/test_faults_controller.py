"""The command itself is killed, or told to stop, on real parts: nothing lives on, and a resume accounts for all."""

import json
import random
import signal
import time
from pathlib import Path

from services.control import run_folder, run_state
from services.control.ledger_events import Resumed, RunEnded, Trained
from tests.end_to_end.command import Finished, Running, json_lines, started, trireme, write_config
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
from tests.end_to_end.tiny_run import LONG_STEPS, SAVE_EVERY, long_run_sections

SEED = 7
NUM_STEPS = 60
"""More than a run makes while it is stopped in several ways."""


def killed_at(step: int, *arguments: str, folder: Path) -> Finished:
    """Kill `trireme ARGUMENTS` as soon as `step` is done; `finish` sees to it that its processes follow at once."""
    with started(*arguments, cwd=folder) as running:
        running.wait_until(lambda: steps_done(folder / "run") >= step, f"step {step}")
        running.kill()
        return running.finish()


def test_a_synchronous_run_that_is_interrupted_and_killed_goes_on_to_the_same_weights(
    undisturbed_long: Path, task: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = write_config(tmp_path / "run.yaml", **long_run_sections(task))
    with started("train", config, cwd=tmp_path) as running:
        running.wait_until(lambda: steps_done(run) >= 1, "the first step")
        running.interrupt()
        interrupted = running.finish()
    assert interrupted.code == 130, interrupted.output
    assert f"go on with: trireme train {config} --resume" in interrupted.output
    killed = killed_at(random.Random(SEED).randint(10, 30), "train", config, "--resume", folder=tmp_path)
    assert killed.code == -signal.SIGKILL
    resumed = trireme("train", config, "--resume", cwd=tmp_path)
    assert resumed.code == 0, resumed.output
    assert [row["step"] for row in json_lines(run / "metrics.jsonl")] == list(range(1, LONG_STEPS + 1))
    assert weights(run) == weights(undisturbed_long)
    assert violations(run) == {}


def test_an_asynchronous_run_that_is_stopped_in_every_way_trains_each_prompt_once(task: Path, tmp_path: Path) -> None:
    """One run in five commands: killed, told to end, drained by its operator, interrupted, finished. The third learns
    on two ranks."""
    run = tmp_path / "run"
    sections = long_run_sections(task, train={"max_staleness": 1, "num_steps": NUM_STEPS})
    config = write_config(tmp_path / "run.yaml", **sections)
    killed_at(random.Random(SEED).randint(6, 9), "train", config, folder=tmp_path)
    step = steps_done(run)

    resumed_at = time.time()
    with started("train", config, "--resume", cwd=tmp_path) as running:
        assert came(running, run, Resumed, since=resumed_at).step >= step - SAVE_EVERY
        assert came(running, run, Trained, since=resumed_at).time - resumed_at <= RESTORED_WITHIN_S
        keeps_what_is_under_way(running, run, signal.SIGTERM)
    with started("train", config, "--resume", "--learner.num_ranks", "2", cwd=tmp_path) as running:
        is_paused_saved_and_drained(running, run, tmp_path)
    with started("train", config, "--resume", cwd=tmp_path) as running:
        keeps_what_is_under_way(running, run, signal.SIGINT)
    finished = trireme("train", config, "--resume", cwd=tmp_path)
    assert finished.code == 0, finished.output
    assert [event.how for event in events(run, RunEnded)] == ["interrupted", "drained", "interrupted", "finished"]
    assert steps_done(run) == NUM_STEPS
    assert violations(run) == {}


def goes_on(running: Running, run: Path) -> None:
    """Wait for two steps of the command that runs now."""
    step = steps_done(run)
    running.wait_until(lambda: steps_done(run) >= step + 2, "two further steps")


def keeps_what_is_under_way(running: Running, run: Path, number: signal.Signals) -> None:
    """A signal ends the run with a checkpoint that holds the prompts it was busy with."""
    goes_on(running, run)
    running.interrupt(number)
    finished = running.finish()
    assert finished.code == 130, finished.output
    saved, state, faults = run_state.newest(run / run_folder.CHECKPOINTS)
    assert faults == []
    assert state.step == steps_done(run)
    waiting = (saved / run_state.WAITING_FILE).read_text().splitlines()
    assert len(state.running) + len(waiting) > 0


def is_paused_saved_and_drained(running: Running, run: Path, folder: Path) -> None:
    """The operator's commands, one after the other; the run ends before its last step."""
    goes_on(running, run)
    assert trireme("pause", str(run), cwd=folder).code == 0
    shown = json.loads(trireme("status", str(run), "--json", cwd=folder).output)
    assert shown["phase"] == "paused"
    running.wait_until(lambda: status(run).num_running == 0, "the prompts under way to end")
    paused_at = status(run).step
    saved = trireme("checkpoint", str(run), cwd=folder)
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
    assert paused_at + 2 <= steps_done(run) < NUM_STEPS
