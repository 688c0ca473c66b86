"""Peak memory of a run on this machine: this process and everything it started.

It must not know what the processes do. Shared pages (weights in Ray's object store) are counted once, through the
proportional set size that Linux keeps.
"""

import threading
from typing import Self

import psutil


class MemoryWatch:
    """Samples memory in the background while it is entered; `peak_bytes` is the largest sum seen."""

    def __init__(self, *, every_s: float = 2.0) -> None:
        self.peak_bytes = 0
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=self._every_s + 10)

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            self.peak_bytes = max(self.peak_bytes, _family_bytes())


def _family_bytes() -> int:
    me = psutil.Process()
    return sum(_process_bytes(process) for process in (me, *me.children(recursive=True)))


def _process_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0  # It ended meanwhile.
