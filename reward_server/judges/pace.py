"""How fast something may start: so much a minute, and at once what the last two seconds left unused.

It must not know what starts, nor wait itself. Invariant: over any time the amounts that started are at most the rate
times that time, and one burst, and the last that started.
"""

BURST_S = 2.0
"""How much of an unused past may be caught up with at once, in seconds."""


class Pace:
    """Counts what starts.

    Args:
        per_minute: the amount that may start in a minute; None for no limit.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._s_per_unit = 60.0 / per_minute if per_minute else 0.0
        self._free_at = float("-inf")

    def next_start(self) -> float:
        """From when on something may start."""
        return self._free_at

    def take(self, amount: float, *, now: float) -> None:
        """Note that `amount` starts."""
        self._free_at = max(self._free_at, now - BURST_S) + amount * self._s_per_unit

    def give_back(self, amount: float) -> None:
        """Return what was taken and not used."""
        self._free_at -= amount * self._s_per_unit
