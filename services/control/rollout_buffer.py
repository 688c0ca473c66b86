"""Scored groups that wait for the learner.

It must not know what is in a group. Invariant: groups leave whole, each once, and in the order of their admission, so
that the order in which workers finish changes nothing that is trained.
"""

import heapq

from services.contracts.records import ScoredGroup


class RolloutBuffer:
    """A bounded queue ordered by admission number.

    Args:
        capacity: most groups that may wait; the admission rule keeps below it, so exceeding it is a bug.
    """

    def __init__(self, *, capacity: int) -> None:
        self._capacity = capacity
        self._waiting: list[tuple[int, ScoredGroup]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, admission: int, group: ScoredGroup) -> None:
        assert len(self._waiting) < self._capacity, f"{len(self._waiting)} groups wait and {self._capacity} may"
        heapq.heappush(self._waiting, (admission, group))

    def take(self, count: int) -> list[ScoredGroup]:
        """The `count` groups that were admitted first."""
        assert count <= len(self._waiting), f"{count} groups asked for and {len(self._waiting)} wait"
        return [heapq.heappop(self._waiting)[1] for _ in range(count)]
