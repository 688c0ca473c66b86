"""Scored groups that wait for the learner, and which of them may go.

Each group has a deadline: the last step (counted from 0) that may train it, its version at admission plus
`max_staleness`. It must not know what is in a group. Invariants: groups leave whole, each once, the earliest deadline
first, then in the order of their admission; a batch leaves only if every group that is still open can meet its own
deadline afterwards. With staleness 0 that is strict order of admission, whatever order workers finish in; with more, a
batch need not wait for its slowest groups until their deadline comes, which is what keeps long answers from holding up
the learner without ever being thrown away.
"""

import heapq
from collections import Counter
from dataclasses import dataclass, field

from services.contracts.records import ScoredGroup


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Waiting:
    """A scored group, its place in the order of admission, and the last step that may train it."""

    deadline: int
    position: int
    group: ScoredGroup = field(compare=False)


class RolloutBuffer:
    """A bounded queue ordered by deadline.

    Args:
        batch: groups that leave at once.
        capacity: most groups that may wait; the admission rule keeps below it, so exceeding it is a bug.
    """

    def __init__(self, *, batch: int, capacity: int) -> None:
        self._batch = batch
        self._capacity = capacity
        self._waiting: list[Waiting] = []

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def waiting(self) -> list[Waiting]:
        """The groups that wait, in the order in which they may leave."""
        return sorted(self._waiting)

    def put(self, waiting: Waiting) -> None:
        assert len(self._waiting) < self._capacity, f"{len(self._waiting)} groups wait and {self._capacity} may"
        heapq.heappush(self._waiting, waiting)

    def take(self, *, step: int, running: Counter[int]) -> list[Waiting] | None:
        """The batch that step number `step` trains, or None while it has to wait for groups that are running.

        Args:
            running: how many groups are running, by deadline.
        """
        if len(self._waiting) < self._batch:
            return None
        batch = heapq.nsmallest(self._batch, self._waiting)
        if not self._others_can_wait(batch, step, running):
            return None
        self._waiting = sorted(self._waiting)[self._batch :]
        return batch

    def _others_can_wait(self, batch: list[Waiting], step: int, running: Counter[int]) -> bool:
        """Whether, for each deadline to come, the open groups due by then fit into the steps that are left until then.

        The batch holds as many groups with early deadlines as any choice could, so if it does not do, none does.
        """
        still_open = running + Counter(waiting.deadline for waiting in self._waiting)
        still_open.subtract(waiting.deadline for waiting in batch)
        due = 0
        for deadline in sorted(still_open):
            due += still_open[deadline]
            if due > (deadline - step) * self._batch:
                return False
        return True
