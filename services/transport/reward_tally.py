"""What scoring cost a run since somebody last asked: calls, retries, the time spent waiting for the service, ejections.

Pure state: it must not know gRPC or samples. Invariant: time in which several calls wait counts once.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class RewardTally:
    """Counts since the last `lap`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_calls = 0
        self.num_retries = 0
        self.num_ejections = 0
        self._clock = clock
        self._num_waiting = 0
        self._waiting_since = 0.0
        self._waited_s = 0.0

    @contextmanager
    def trying(self) -> Iterator[Callable[[], None]]:
        """Around all attempts at one thing; what it gives is called before each attempt but the first."""
        is_waiting = False

        def again() -> None:
            nonlocal is_waiting
            self.num_retries += 1
            if not is_waiting:
                is_waiting = True
                self._wait(+1)

        try:
            yield again
        finally:
            if is_waiting:
                self._wait(-1)

    def lap(self) -> dict[str, float]:
        """The counts as a run's metrics; they begin anew."""
        self._wait(0)
        counted = {
            "reward_service/calls": self.num_calls,
            "reward_service/retries": self.num_retries,
            "reward_service/waited_seconds": self._waited_s,
            "reward_service/ejections": self.num_ejections,
        }
        self.num_calls = self.num_retries = self.num_ejections = 0
        self._waited_s = 0.0
        return counted

    def _wait(self, more: int) -> None:
        """So many more wait from now on."""
        now = self._clock()
        if self._num_waiting:
            self._waited_s += now - self._waiting_since
        self._waiting_since = now
        self._num_waiting += more
