"""How fast requests may start: so much a minute, and not before the endpoint said that it takes more.

It must not know what a request is, nor wait itself. Invariant: over any time the amounts that were let start are at
most the rate times that time, and one burst.
"""

BURST_S = 2.0
"""How much of an unused past may be caught up with at once, in seconds."""


class Pace:
    """Hands out start times, in the order asked.

    Args:
        per_minute: the amount that may start in a minute; None for no limit.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._s_per_unit = 60.0 / per_minute if per_minute else 0.0
        self._free_at = float("-inf")

    def next_start(self, *, now: float) -> float:
        """When what is taken now may start."""
        return max(self._free_at, now)

    def take(self, amount: float, *, now: float) -> None:
        """Take the next place in line for `amount`."""
        self._free_at = max(self._free_at, now - BURST_S) + amount * self._s_per_unit

    def give_back(self, amount: float) -> None:
        """Return what was taken and not used."""
        self._free_at -= amount * self._s_per_unit

    def hold(self, *, until: float) -> None:
        """Let nothing more start before `until`."""
        self._free_at = max(self._free_at, until)
