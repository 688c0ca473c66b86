"""Ties a process to its parent, so that a run that is killed leaves no process behind.

It must not know what the process does. Invariant: after `die_with_parent` the kernel kills this process with its
parent, even when its interpreter is stuck. The kernel watches the thread that started it, which must live as long.
"""

import ctypes
import os
import signal
import sys

from services.contracts.errors import UserError

PR_SET_PDEATHSIG = 1


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
