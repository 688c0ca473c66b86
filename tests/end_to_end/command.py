"""Runs `trireme` (or `ray`) as a user does, in a process of its own, and checks that it leaves none behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

TIMEOUT_S = 240
TRIREME = "services.cli"
RAY = "ray.scripts.scripts"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """How a command ended."""

    code: int
    output: str


class Running:
    """A command under way; `family` are the processes that it started and that were seen."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._family: dict[int, psutil.Process] = {}

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert self._process.poll() is None, f"it ended while waiting for {what}: {self._process.communicate()[0]}"
            assert time.monotonic() < deadline, f"waited {TIMEOUT_S} s for {what}"
            self._look()
            time.sleep(0.1)

    def descendants(self, beginning: str) -> Sequence[psutil.Process]:
        """Its processes whose title begins so."""
        children = psutil.Process(self._process.pid).children(recursive=True)
        return [process for process in children if title(process).startswith(beginning)]

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()

    def finish(self) -> Finished:
        """Wait for the end; no process that was seen may outlive it for long."""
        deadline = time.monotonic() + TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < deadline:
            self._look()
            time.sleep(0.2)
        left = left_behind(list(self._family.values()), 20)  # First: they may still hold the pipe.
        output, _ = self._process.communicate(timeout=10)
        assert left == [], f"processes left behind: {left}"
        return Finished(code=self._process.returncode, output=output)

    def _look(self) -> None:
        try:
            for child in psutil.Process(self._process.pid).children(recursive=True):
                self._family.setdefault(child.pid, child)
        except psutil.NoSuchProcess:
            return


def left_behind(processes: Sequence[psutil.Process], timeout_s: float) -> Sequence[str]:
    """Which of these do not end within the time; they are killed."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    names = []
    for process in alive:
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            names.append(title(process)[:120])
            process.kill()
    return names


def title(process: psutil.Process) -> str:
    """The process's command line; empty when it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@contextmanager
def started(*arguments: str, cwd: Path, module: str = TRIREME) -> Iterator[Running]:
    """`trireme ARGUMENTS`, or another module's command, killed on the way out if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield Running(process)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def trireme(*arguments: str, cwd: Path) -> Finished:
    """Run a command to its end."""
    with started(*arguments, cwd=cwd) as running:
        return running.finish()


def write_config(path: Path, **sections: object) -> str:
    path.write_text(yaml.safe_dump(sections))
    return str(path)


def json_lines(path: Path) -> Sequence[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
