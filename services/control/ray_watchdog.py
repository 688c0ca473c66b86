"""Ends whatever is left of a Ray that this run started, also when the run's own process was killed.

A process of its own, which holds the reading end of a pipe: the pipe closes when the run's process ends, in whichever
way. Most processes of a Ray follow its head at once; its agents look for the head for a minute. It must not know what
Ray starts. Invariant: only processes of this user whose environment holds the run's own token are ended.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil

TOKEN_VARIABLE = "RAY_AUTH_TOKEN"
_ENDS_WITHIN_S = 5.0
_MAX_ROUNDS = 2


@contextmanager
def watched(token: str) -> Iterator[None]:
    """Processes that are started inside with this token outlive neither the block nor this process."""
    environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    with subprocess.Popen(
        [sys.executable, "-m", "services.control.ray_watchdog"],
        stdin=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C is for the run, which is to end first.
        text=True,
    ) as watchdog:
        assert watchdog.stdin is not None
        watchdog.stdin.write(token + "\n")
        watchdog.stdin.flush()
        yield  # Leaving the block closes the pipe and waits.


def end_all(token: str) -> None:
    """SIGKILL every process with the token, and again those that one of them started meanwhile."""
    for _ in range(_MAX_ROUNDS):
        left = _holders(token)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=_ENDS_WITHIN_S)


def _holders(token: str) -> Sequence[psutil.Process]:
    return [process for process in psutil.process_iter() if _holds(process, token)]


def _holds(process: psutil.Process, token: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(TOKEN_VARIABLE) == token
    except psutil.Error:
        return False


def main() -> None:
    token = sys.stdin.readline().strip()
    sys.stdin.read()  # Until the pipe closes.
    if token:
        end_all(token)


if __name__ == "__main__":
    main()
