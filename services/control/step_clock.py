"""How long each phase of a step took.

It must not know what a phase does. Invariants: a phase's time is the length of the union of its intervals, so that a
hundred samplings at the same time count the seconds once; a pause is no part of a step.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PAUSED = "paused"
"""The phase in which nothing is to happen."""


class StepClock:
    """Times the phases of one step; phases may overlap and nest.

    Args:
        now: seconds on a clock that never goes back.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._started = now()
        self._active: dict[str, int] = {}
        self._since: dict[str, float] = {}
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if not self._active.get(name):
            self._since[name] = self._now()
        self._active[name] = self._active.get(name, 0) + 1
        try:
            yield
        finally:
            self._active[name] -= 1
            if not self._active[name]:
                self._add(name)

    def lap(self) -> dict[str, float]:
        """Seconds of each phase and of the whole (`step`) since the last lap; a running phase is split here."""
        now = self._now()
        for name, count in self._active.items():
            if count:
                self._add(name)
                self._since[name] = now
        paused = self._seconds.pop(PAUSED, 0.0)
        seconds = {**self._seconds, "step": now - self._started - paused}
        self._seconds, self._started = {}, now
        return seconds

    def _add(self, name: str) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + self._now() - self._since[name]
