"""How a process ends: with its parent, so that a run that is killed leaves none behind, or because its parent kills it.

It must not know what the process does. Invariants: after `die_with_parent` the kernel kills this process with its
parent, even when its interpreter is stuck. The kernel watches the thread that started it, which must live as long.
Nobody waits for the end of a killed process for longer than `GONE_WITHIN_S`.
"""

import asyncio
import ctypes
import os
import signal
import sys
from asyncio.subprocess import Process
from contextlib import suppress

from services.contracts.errors import UserError

PR_SET_PDEATHSIG = 1
GONE_WITHIN_S = 5.0
"""Longest wait for a process that was killed, in seconds; the kernel may hold on to it for longer."""


def die_with_parent(parent_pid: int) -> None:
    """Have this process killed when process `parent_pid`, which started it, ends.

    Raises:
        UserError: where this is not supported, or the parent is not (or no longer) `parent_pid`.
    """
    if sys.platform != "linux":
        raise UserError(f"a process can be tied to its parent on Linux only, not on {sys.platform}; omit --parent-pid")
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # It ended before the kernel was told.
        raise UserError(f"the parent of this process is {os.getppid()}, not {parent_pid}; it may have ended already")


def leave_sigterm_to_parent() -> None:
    """Do nothing at SIGTERM; what this process starts does not inherit that.

    Who ends a whole tree of processes sends it to each, as `ray job stop` does, and means the run, which needs rewards
    to the end of its step.
    """
    signal.signal(signal.SIGTERM, lambda *_: None)


async def kill(process: Process) -> int | None:
    """Kill a process unless it has ended, and return its exit code; None where it has not ended within the time."""
    if process.returncode is None:
        process.kill()
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), GONE_WITHIN_S)
    return process.returncode
