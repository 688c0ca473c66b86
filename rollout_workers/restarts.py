"""How often lost workers are replaced before a run goes on with fewer.

Pure arithmetic over times that the caller gives. Invariants: within any `window_s` at most `max_restarts` replacements
are allowed; the pause before the next one doubles with each failure in a row.
"""

from collections import deque

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0


class RestartBudget:
    """Counts losses.

    Args:
        max_restarts: replacements within the window.
        window_s: its length, in seconds.
    """

    def __init__(self, *, max_restarts: int, window_s: float) -> None:
        self._max_restarts = max_restarts
        self._window_s = window_s
        self._spent: deque[float] = deque()
        self._failures_in_a_row = 0

    def spend(self, now: float, *, counts: bool = True) -> bool:
        """A worker was lost, or did not come up. Whether it may be replaced.

        Args:
            counts: it used up a replacement; what does not is only tried again after a longer pause.
        """
        while self._spent and now - self._spent[0] >= self._window_s:
            self._spent.popleft()
        self._failures_in_a_row += 1
        if not counts:
            return True
        if len(self._spent) >= self._max_restarts:
            return False
        self._spent.append(now)
        return True

    def came_up(self) -> None:
        """A worker serves: the next loss is the first in a row."""
        self._failures_in_a_row = 0

    @property
    def pause_s(self) -> float:
        """How long to wait before the next replacement, in seconds: none after a single loss."""
        if self._failures_in_a_row <= 1:
            return 0.0
        return float(min(FIRST_PAUSE_S * 2 ** (self._failures_in_a_row - 2), LONGEST_PAUSE_S))
