"""What a run left on disk and in the process table is held against its ledger."""

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from services.contracts.errors import UserError
from services.contracts.records import Reward, RolloutGroup, ScoredGroup
from services.control import run_folder, run_state
from services.control.event_log import EVENTS_FILE
from services.control.ledger_events import Checkpoint, Event, Joined
from services.control.rollout_buffer import Waiting
from services.control.run_state import RunState
from services.control.verification import verify_run
from tests.control.tiny_ledger import TinyLedger, whole_run
from tests.fakes import make_prompt, make_rollout

CHECKED_BY_PROGRAM = "import sys; from services.cli.__main__ import main; code = main(sys.argv[1:]); "


def write_ledger(folder: Path, events: Sequence[Event]) -> None:
    (folder / EVENTS_FILE).write_text("".join(json.dumps(asdict(event)) + "\n" for event in events))


def position_of(prompt: str) -> int:
    return int(prompt.removeprefix("0-"))


def waiting_at(position: int) -> Waiting:
    prompt = make_prompt(position)
    group = RolloutGroup(prompt=prompt, rollouts=(make_rollout(prompt),))
    return Waiting(deadline=0, position=position, group=ScoredGroup(group=group, rewards=(Reward(value=1.0),)))


def write_run(folder: Path, run: TinyLedger) -> None:
    """The ledger of a run and its checkpoints, as the run would write them."""
    folder.mkdir(exist_ok=True)
    write_ledger(folder, run.events)

    async def save_learner(learner: Path) -> None:
        learner.mkdir()
        (learner / "weights.bin").write_bytes(b"weights")

    for kept, held in run.committed:
        state = RunState(
            step=held.step,
            prompt_position=held.position,
            running=tuple(map(position_of, held.waiting)),
            event_counts=held.counts,
            num_events=kept + 1,
        )
        waiting = [waiting_at(position_of(prompt)) for prompt, _ in held.groups]
        commit = run_state.commit(
            folder / run_folder.CHECKPOINTS, state, waiting=waiting, save_learner=save_learner, keep=2
        )
        asyncio.run(commit)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", whole_run())
    return tmp_path / "run"


def verify(*arguments: object, tail: str = "sys.exit(code)") -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", CHECKED_BY_PROGRAM + tail, "verify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def result(folder: Path, invariant: str) -> str:
    report = verify_run(folder, leftover_timeout_s=0.0)
    return next(verdict.result for verdict in report.verdicts if verdict.invariant == invariant)


def test_a_true_run_is_verified_without_loading_what_trains(folder: Path) -> None:
    done = verify(folder, tail="print({'torch', 'ray', 'vllm', 'deepspeed'} & sys.modules.keys()); sys.exit(code)")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every promise held" in done.stdout
    assert "6 trained in 3 steps" in done.stdout
    assert done.stdout.endswith("set()\n")


def test_a_violation_ends_the_command_with_1_and_is_told_in_json(folder: Path) -> None:
    write_ledger(folder, whole_run().events[:-1])
    done = verify(folder, "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["held"] is False
    assert [verdict["invariant"] for verdict in told["verdicts"] if verdict["result"] == "violated"] == ["I7"]
    assert told["totals"]["trained"] == 6


def test_what_cannot_be_verified_is_refused(folder: Path, tmp_path: Path) -> None:
    ledger = folder / EVENTS_FILE
    lines = ledger.read_text().splitlines(keepends=True)
    refusals = {
        "line 3 of": [*lines[:2], '{"event": "joined", "seq": 2, "tim\n', *lines[3:]],
        "worker: Field required": [*lines[:2], '{"event": "joined", "seq": 2, "time": 2}\n', *lines[3:]],
        "does not begin with run_started": ['{"event": "published", "time": 1.0, "version": 0}\n'],
        "has no event yet": [],
    }
    for message, content in refusals.items():
        ledger.write_text("".join(content))
        done = verify(folder)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
        assert "Traceback" not in done.stderr
    assert verify(tmp_path / "nowhere").returncode == 2


def test_a_last_line_that_was_torn_is_left_out_and_said(folder: Path) -> None:
    with (folder / EVENTS_FILE).open("a") as ledger:
        ledger.write('{"event": "trai')
    report = verify_run(folder)
    assert report.violations == {}
    assert report.notes == ("line 76, the last, was cut off in writing; it is left out",)


def test_a_damaged_checkpoint_is_named(folder: Path) -> None:
    (folder / "checkpoints/step_3/learner/weights.bin").write_bytes(b"other")
    assert "step_3: learner/weights.bin has changed" in verify_run(folder).violations["I5"]


def test_a_checkpoint_and_its_event_belong_together(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints/step_3")
    assert "the checkpoint of step 3, told of at line 74, is not in" in verify_run(folder).violations["I5"]
    write_run(folder, whole_run())
    events = whole_run().events
    place = max(event.seq for event in events if isinstance(event, Checkpoint))
    write_ledger(folder, [*events[:place], *(replace(event, seq=event.seq - 1) for event in events[place + 1 :])])
    assert "no event tells of the newest checkpoint, step_3" in verify_run(folder).violations["I5"]


def test_a_run_without_a_checkpoint_has_none_to_check(tmp_path: Path) -> None:
    run = TinyLedger()
    run.end("failed", error="WorkerLost", exit_code=1)
    write_run(tmp_path, run)
    assert result(tmp_path, "I5") == "not applicable"


def test_the_counts_of_the_checkpoint_are_those_of_the_ledger(folder: Path) -> None:
    run = whole_run()
    run.committed[-1][1].counts["trained"] += 1
    write_run(folder, run)
    assert verify_run(folder).violations == {
        "ledger": "the checkpoint of step 3 (line 74) counts 7 prompts trained, and the ledger 6"
    }


def interrupted_run() -> TinyLedger:
    """A run that ends after its first step, with a group that waits and a prompt that is being sampled."""
    run = TinyLedger()
    for _ in range(4):
        run.admit()
        run.dispatch(0)
    for attempt in (0, 1, 2):
        run.accept(attempt)
    run.train()
    run.checkpoint()
    run.admit()
    run.end("interrupted", exit_code=130)
    return run


def test_the_checkpoint_holds_the_prompts_that_are_open_and_no_others(tmp_path: Path) -> None:
    """What was admitted after it is drawn again once the run resumes."""
    run = interrupted_run()
    held = run.committed[-1][1]
    write_run(tmp_path, run)
    assert verify_run(tmp_path).violations == {}
    held.waiting, held.groups = [], []
    write_run(tmp_path, run)
    after = "it was open after 18 events, when the checkpoint of step 1 was taken, which does not hold it"
    assert verify_run(tmp_path).violations == {"I1": f"prompt 0-2 was lost: {after}\nprompt 0-3 was lost: {after}"}
    held.waiting, held.groups = ["0-3"], [("0-1", 0), ("0-2", 0)]
    write_run(tmp_path, run)
    found = verify_run(tmp_path).violations["I1"]
    assert "holds the prompt at position 1 of the stream, which was not open then" in found


def test_a_run_that_is_held_is_live(folder: Path) -> None:
    write_ledger(folder, whole_run().events[:-1])
    assert "I7" in verify_run(folder).violations
    with run_folder.hold(folder, resume=True):
        report = verify_run(folder)
        assert report.violations == {}
        assert report.notes == ("the run is live: checked as far as it went",)
        write_ledger(folder, whole_run().events[:60])  # It has saved a checkpoint since its ledger was opened.
        assert verify_run(folder).violations == {}
    assert "I7" in verify_run(folder).violations


@pytest.mark.parametrize("name", ["ray::RolloutWorker", "sleep"])
def test_a_worker_that_outlives_its_run_is_found(folder: Path, name: str) -> None:
    """But not a process that has nothing of ours, as one to which the id was given since."""
    with subprocess.Popen([name, "60"], executable=shutil.which("sleep"), env={}) as process:
        joined = Joined(seq=2, time=time.time(), worker=0, node="localhost", pid=process.pid)
        events = whole_run().events
        write_ledger(folder, [*events[:2], joined, *events[3:]])
        report = verify_run(folder, leftover_timeout_s=0.0)
        write_ledger(folder, [*events[:2], replace(joined, time=time.time() - 60), *events[3:]])
        younger_than_the_event = verify_run(folder, leftover_timeout_s=0.0)
        process.kill()
    if name == "sleep":
        assert report.violations == {}
    else:
        assert f"worker 0 is still there as process {process.pid}" in report.violations["I8"]
    assert younger_than_the_event.violations == {}
    assert result(folder, "I8") == "held"


def test_a_worker_of_another_node_with_the_same_process_id_hides_none(folder: Path) -> None:
    with subprocess.Popen(["ray::RolloutWorker", "60"], executable=shutil.which("sleep"), env={}) as process:
        events = whole_run().events
        here = Joined(seq=2, time=time.time(), worker=0, node="localhost", pid=process.pid)
        elsewhere = Joined(seq=4, time=time.time(), worker=1, node="elsewhere", pid=process.pid)
        write_ledger(folder, [*events[:2], here, events[3], elsewhere, *events[5:]])
        report = verify_run(folder, leftover_timeout_s=0.0)
        process.kill()
    assert f"worker 0 is still there as process {process.pid}" in report.violations["I8"]


LOOKED_AT_BY_ANOTHER = """
import os, socket, sys, time
from services.control.checks.findings import Findings
from services.control.checks.leftovers import check_leftovers
from services.control.ledger_events import Joined

socket.getfqdn()  # Loads a module that lies where only root may read, if this is root's Python.
if os.getuid() == 0:
    os.setuid(65534)
findings = Findings()
check_leftovers([Joined(seq=0, time=time.time(), worker=0, pid=int(sys.argv[1]))], findings, timeout_s=0.0)
print(*(verdict.result for verdict in findings.verdicts() if verdict.invariant == "I8"))
"""


@pytest.mark.parametrize(("name", "expected"), [("ray::RolloutWorker", "violated"), ("sleep", "not applicable")])
def test_a_process_that_may_not_be_looked_into_is_not_called_gone(tmp_path: Path, name: str, expected: str) -> None:
    """Nobody but root may look into a process whose program its user cannot read, nor into one of root's."""
    sleep = tmp_path / "sleep"
    shutil.copy(shutil.which("sleep") or "", sleep)
    sleep.chmod(0o111)
    with subprocess.Popen([name, "60"], executable=sleep, env={}) as process:
        command = [sys.executable, "-c", LOOKED_AT_BY_ANOTHER, str(process.pid)]
        looked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        process.kill()
    assert looked.stdout.strip() == expected, looked.stderr


def export(folder: Path, **tensors: list[float]) -> None:
    (folder / "export").mkdir(exist_ok=True)
    arrays = {name: np.array(values, dtype=np.float32) for name, values in tensors.items()}
    save_file(arrays, folder / "export/model.safetensors")


def test_two_runs_have_the_same_weights_or_the_first_other_tensor_is_named(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for one in (folder, other):
        export(one, embed=[1.0, 2.0], head=[3.0])
    assert verify_run(folder, same_as=other).violations == {}
    done = verify(folder, "--same-as", other)
    assert done.returncode == 0, done.stdout
    export(other, embed=[1.0, 2.0], head=[np.nextafter(np.float32(3), np.float32(4))])
    assert "tensor head (F32 [1]) has other values" in verify_run(folder, same_as=other).violations["I6"]
    export(other, embed=[1.0, 2.0], head=[3.0, 4.0])
    assert "tensor head is F32 [1] here and F32 [2] there" in verify_run(folder, same_as=other).violations["I6"]
    export(other, embed=[1.0, 2.0])
    assert "tensor head is in the export of one run only" in verify_run(folder, same_as=other).violations["I6"]


def test_runs_without_an_export_are_compared_by_their_checkpoints(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    assert verify_run(folder, same_as=other).violations == {}
    shutil.rmtree(other / "checkpoints/step_3")
    found = verify_run(folder, same_as=other).violations
    assert "the newest checkpoint is of step 3 here and of step 2 there" in found["I6"]
    shutil.rmtree(other / "checkpoints")
    with pytest.raises(UserError, match="neither an export nor a checkpoint"):
        verify_run(folder, same_as=other)
