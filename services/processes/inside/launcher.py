"""The fork server of the sandbox: for each job that comes with its files, one supervisor and one jailed program.

    launcher ── fork ──> supervisor (namespaces, root, clock) ── fork ──> the program, first process of its namespace

Started by `sandbox.Sandbox` with nothing in its environment, and asked over a socket: a job as JSON, and with it the
open files that the program gets. Programs, inputs and outputs lie in those files and never pass through the launcher,
so that a program, which is a copy of this process, finds nothing of another one in it. Invariants: a supervisor ends
with the launcher or when nobody reads its report, and its program with it; a report comes from the supervisor, or from
the program's process before it is the program's.
"""

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from . import guest, jail, kernel, seccomp

MAX_JOB_BYTES, MAX_JOB_FILES = 4096, 8
BROKEN = 70
"""Exit code of a process that could not build its part of the jail."""


def main(channel: int, parent: int, python_path: Sequence[str]) -> None:
    """Serve jobs until the other end of `channel` is closed, or the process `parent` ends."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    sys.path += python_path
    guest.warm_up()
    visible, program = jail.libraries(), seccomp.filter_program(os.uname().machine)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Supervisors are not waited for.
    signal.signal(signal.SIGTERM, lambda *_: None)  # Who sends it to a whole tree means its root.
    launcher = os.pidfd_open(os.getpid())
    with socket.socket(fileno=channel) as server:
        while True:
            job, files, _, _ = socket.recv_fds(server, MAX_JOB_BYTES, MAX_JOB_FILES)
            if not job:
                return
            supervisor = None
            try:
                supervisor = os.fork()
            except OSError as error:
                tell_broken(files[0], error)
            if supervisor == 0:
                server.close()
                supervise(json.loads(job), files, launcher, visible, program)
            for file in files:
                os.close(file)


def supervise(
    job: dict[str, Any],  # Any: JSON
    files: list[int],
    launcher: int,
    visible: Sequence[str],
    program: bytes,
) -> NoReturn:
    """Run one job and report how it ended. Never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    report, *given = files
    limits = jail.Limits(*job["limits"])
    with ended_when_broken(report):
        was_root = jail.isolate()
        jail.end_with(launcher)
        jail.build_root(visible, limits.file_bytes)
        started = time.monotonic()
        supervisor = os.pidfd_open(os.getpid())
        child = os.fork()
    if child == 0:
        with ended_when_broken(report):
            jail.confine(limits, was_root=was_root, parent=supervisor, keep=[report, *given], program=program)
        os.close(report)
        guest.run(job["role"], given)
    with ended_when_broken(report):
        for file in given:
            os.close(file)
        in_time = wait(child, report, job["wall_s"])
        _, status, usage = os.wait4(child, 0)
        ended = {
            "exit_code": os.waitstatus_to_exitcode(status),
            "timed_out": not in_time,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "wall_s": time.monotonic() - started,
        }
        os.write(report, json.dumps(ended).encode() + b"\n")
    os._exit(0)


def wait(child: int, report: int, wall_s: float) -> bool:
    """Wait for the program; kill it when its time is up, or when nobody waits for the report any more."""
    process = os.pidfd_open(child)
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.register(report, 0)  # Tells when the other end is closed.
    ready = [file for file, _ in poll.poll(wall_s * 1000)]
    if ready != [process]:
        os.kill(child, signal.SIGKILL)
    return bool(ready)


@contextmanager
def ended_when_broken(report: int) -> Iterator[None]:
    """Report a step that failed, and end this process."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the edge of a process, which tells and ends
        tell_broken(report, error)
        os._exit(BROKEN)


def tell_broken(report: int, error: Exception) -> None:
    with suppress(BrokenPipeError):  # Nobody waits for it any more.
        os.write(report, json.dumps({"broken": f"{type(error).__name__}: {error}"}).encode() + b"\n")
