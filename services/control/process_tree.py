"""Ends a process with everything that it started, frozen or not.

It must not know Ray, nor find a process by its name. Invariant: only the process that was described is ended, never a
later one that was given the same pid.
"""

import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil

_GONE_WITHIN_S = 5.0


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot, so that no clock jump matters; None when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(")")[2].split()[19])


def end_process_tree(pid: int, started: int) -> None:
    """SIGKILL the process that started at tick `started`, its descendants, and its process group where it leads one."""
    now = start_ticks(pid)
    if now not in (None, started):
        return
    tree: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        root.suspend()  # so that it starts no child behind our back
        tree = [*root.children(recursive=True), root]
    # The group outlives its leader, and no new process is given the pid while it does.
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(tree, timeout=_GONE_WITHIN_S)
