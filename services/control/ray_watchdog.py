"""Ends what is left of a Ray that this run started, when the run's own process was killed.

A process of its own, which holds the reading end of a pipe: the pipe closes when the run's process ends, in whichever
way. Most of a Ray follows its head at once, but its agents try to report to the head for another minute. It must not
know what Ray starts. Invariant: only processes that have a file of the run's own Ray session open are ended.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_ENDS_WITHIN_S = 5.0
_MAX_ROUNDS = 2


@contextmanager
def watch(session: Path) -> Iterator[None]:
    """Should this process be killed inside, whatever uses the folder `session` is ended."""
    watchdog = subprocess.Popen(
        [sys.executable, "-m", "services.control.ray_watchdog", str(session)],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the run.
    )
    try:
        yield
    finally:
        watchdog.kill()
        with suppress(subprocess.TimeoutExpired):  # The kernel may hold on to a process that was killed.
            watchdog.communicate(timeout=_ENDS_WITHIN_S)


def end_users(session: Path) -> None:
    """SIGKILL every process with a file below `session` open, and again those that one of them started meanwhile."""
    for _ in range(_MAX_ROUNDS):
        left = _users(session)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=_ENDS_WITHIN_S)


def _users(session: Path) -> Sequence[psutil.Process]:
    return [process for process in psutil.process_iter() if _uses(process, session)]


def _uses(process: psutil.Process, session: Path) -> bool:
    try:
        return any(Path(file.path).is_relative_to(session) for file in process.open_files())
    except psutil.Error:
        return False


def main() -> None:
    sys.stdin.read()  # Until the pipe closes.
    end_users(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
