"""Disturbs a live run at a moment of choice, and reads in its ledger what followed and when.

It must not know how a run is made. Invariant: a process that was frozen here is in the middle of what was asked for,
because the run stands still for it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

from services.contracts.errors import UserError
from services.contracts.run_status import RunStatus
from services.control.ledger_events import (
    Accepted,
    Dispatched,
    Event,
    Joined,
    Left,
    Published,
    Requeued,
    RunStarted,
    Synced,
)
from services.control.ledger_file import LedgerFile
from services.control.verification import verify_run
from services.transport.control_client import ControlClient, connect, find_run
from tests.end_to_end.command import Running
from tests.end_to_end.tiny_run import DIGIT_SHARE

REQUEUED_WITHIN_S = 5.0
FOUND_OUT_WITHIN_S = 20.0
"""From the moment that a worker freezes until it is given up; its successor is started then."""
DRAINED_WITHIN_S = 10.0
RESTORED_WITHIN_S = 60.0
STANDS_STILL_S = 0.4
LEARNER_TITLE = "ray::LearnerRank"
REWARD = f"""{DIGIT_SHARE}

if __name__ == "__main__":
    import sys

    from reward_server import serve

    serve(score, port=int(sys.argv[1]))
"""

Kind = TypeVar("Kind", bound=Event)
Doing = Literal["samples", "loads", "waits"]


def events(run: Path, kind: type[Kind], *, since: float = 0.0) -> list[Kind]:
    """What the ledger of the folder `run` has of one kind, from that moment on."""
    try:
        ledger = LedgerFile(run)
    except UserError:  # It has none yet.
        return []
    return [event for event in ledger if isinstance(event, kind) and event.time >= since - 0.001]


def came(running: Running, run: Path, kind: type[Kind], *, since: float) -> Kind:
    """The first event of a kind since a moment, waited for."""
    running.wait_until(lambda: bool(events(run, kind, since=since)), f"{kind.__name__} in the ledger")
    return events(run, kind, since=since)[0]


def steps_done(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def weights(run: Path) -> bytes:
    return (run / "export" / "model.safetensors").read_bytes()


def has_served(run: Path, worker: int) -> bool:
    """Whether a worker was ever given a prompt."""
    return any(event.worker == worker for event in events(run, Dispatched))


def workers(run: Path) -> dict[int, int]:
    """The process of each rollout worker that is there."""
    there: dict[int, int] = {}
    for event in LedgerFile(run):
        match event:
            case RunStarted():
                there.clear()
            case Joined():
                there[event.worker] = event.pid
            case Left():
                there.pop(event.worker, None)
            case _:
                pass
    return there


def ranks(running: Running) -> list[int]:
    """The processes of the learner's ranks."""
    return [process.pid for process in running.descendants(LEARNER_TITLE)]


def doing(run: Path, worker: int) -> Doing:
    """What a worker was last asked to do and has not done yet."""
    prompts: set[str] = set()
    version, published = -1, -1
    for event in LedgerFile(run):
        match event:
            case Dispatched() if event.worker == worker:
                prompts.add(event.prompt)
            case Accepted() | Requeued():
                prompts.discard(event.prompt)
            case Synced() if event.worker == worker:
                version = event.version
            case Published():
                published = event.version
            case _:
                pass
    return "samples" if prompts else "loads" if version < published else "waits"


def freeze(running: Running, run: Path, worker: int, *, while_it: Doing) -> float:
    """Freeze a worker of a synchronous run in the middle of something; returns when, in wall-clock seconds."""
    pid = workers(run)[worker]
    # While it waits for the learner it is soon to load; frozen then, it is found with the load before it.
    just_before = {"waits", "loads"} if while_it == "loads" else {while_it}
    while True:
        running.wait_until(lambda: doing(run, worker) in just_before, f"worker {worker} to do what it is frozen for")
        os.kill(pid, signal.SIGSTOP)
        frozen = time.time()
        running.wait_until(lambda: _quiet_for(run) > STANDS_STILL_S, "the run to stand still for a frozen worker")
        if doing(run, worker) == while_it:
            return frozen
        os.kill(pid, signal.SIGCONT)


def _quiet_for(run: Path) -> float:
    return time.time() - max(event.time for event in LedgerFile(run))


@contextmanager
def operator_of(run: Path) -> Iterator[ControlClient]:
    """Asks a live run what `trireme status`, `scale`, `pause` and the like ask."""
    with connect(find_run(str(run)), timeout_s=15.0) as client:
        yield client


@contextmanager
def paused(run: Path) -> Iterator[None]:
    """Keeps a run from its end meanwhile: a process that starts takes longer than the steps of a tiny run."""
    with operator_of(run) as operator:
        operator.pause()
        yield
        operator.resume()


def status(run: Path) -> RunStatus:
    with operator_of(run) as client:
        return client.status()


def violations(run: Path) -> dict[str, str]:
    """What `trireme verify` finds wrong."""
    return verify_run(run).violations


@contextmanager
def reward_server(folder: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A reward server and its address; killed on the way out."""
    (folder / "reward.py").write_text(REWARD)
    with subprocess.Popen(
        [sys.executable, "reward.py", str(port)], cwd=folder, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as server:
        try:
            assert server.stdout is not None
            yield server, server.stdout.readline().rsplit(" ", 1)[1].strip()
        finally:
            server.kill()
