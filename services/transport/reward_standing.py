"""Whether one replica of a reward service is given calls, judged by how its last calls ended.

Pure state: it must not know gRPC, addresses or other replicas. Invariants: a replica that was ejected gets no call
until it answers a probe; after that it gets one call at a time until one of them is answered.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum


class Rank(IntEnum):
    """How willingly a replica is given the next call; the lowest rank goes first."""

    ON_DUTY = 0
    SITTING_OUT = 1
    """It was ejected and lives; it is used only where nobody is on duty."""
    UNCONNECTED = 2
    """A call would have to wait for a connection, and likely end with why there is none."""
    OUT = 3
    """It gets no call."""


class Standing:
    """The record of one replica.

    Args:
        eject_after: missed deadlines in a row that eject it.
        eject_s: how long it sits out then, in seconds, while another replica is on duty.
    """

    def __init__(self, *, eject_after: int, eject_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_calls = 0
        self._eject_after = eject_after
        self._eject_s = eject_s
        self._clock = clock
        self._num_missed = 0
        self._sits_out_until: float | None = None
        self._is_probed = False

    @property
    def rank(self) -> Rank:
        if self._sits_out_until is None:
            return Rank.ON_DUTY
        if self.wants_probe or self.num_calls:
            return Rank.OUT
        return Rank.ON_DUTY if self._clock() >= self._sits_out_until else Rank.SITTING_OUT

    @property
    def wants_probe(self) -> bool:
        """It was ejected, and has given no sign of life since."""
        return self._sits_out_until is not None and not self._is_probed

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count a call as under way."""
        self.num_calls += 1
        try:
            yield
        finally:
            self.num_calls -= 1

    def answered(self) -> None:
        """A call was answered: all is forgiven."""
        self._num_missed = 0
        self._sits_out_until = None

    def missed(self) -> None:
        """A call was not answered within its deadline."""
        self._num_missed += 1
        if self._num_missed >= self._eject_after:
            self.eject()

    def eject(self) -> None:
        self._sits_out_until = self._clock() + self._eject_s
        self._is_probed = False

    def probed(self) -> None:
        """It answered a probe: it may have a call, once it sat out."""
        self._is_probed = True
