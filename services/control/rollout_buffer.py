"""Scored groups that wait for the learner, and which of them may go.

Each group has a deadline: the last step (counted from 0) that may train it, its version at admission plus
`max_staleness`. It must not know what is in a group, but for whether it is flat: whether its rewards are all the same.
Invariants: groups leave whole, each once, the earliest deadline first, then in the order of their admission; a batch
leaves only if every group that is still open can meet its own deadline afterwards. With staleness 0 that is strict
order of admission, whatever order workers finish in; with more, a batch need not wait for its slowest groups until
their deadline comes, which is what keeps long answers from holding up the learner without ever being thrown away.

Flat groups may be replaced (dynamic sampling of DAPO, arXiv 2503.14476): up to `max_replaced` of them, the first in the
same order, count for nothing while they wait and leave untrained with the next batch. Which these are is settled when
the batch leaves, by order and not by arrival, so with staleness 0 a batch is still a function of the prompts alone: it
is the shortest run of prompts that holds enough groups once `max_replaced` flat ones are left out.
"""

from bisect import insort
from collections import Counter
from dataclasses import dataclass, field

from services.contracts.records import ScoredGroup


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Waiting:
    """A scored group, its place in the order of admission, and the last step that may train it."""

    deadline: int
    position: int
    group: ScoredGroup = field(compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Departure:
    """What leaves the buffer at once: the groups of one learner step, and the flat ones that others replaced."""

    batch: tuple[Waiting, ...] = ()
    replaced: tuple[Waiting, ...] = ()


class RolloutBuffer:
    """A bounded queue ordered by deadline.

    Args:
        batch: groups that leave for the learner at once.
        capacity: most groups that may wait to be trained; the admission rule keeps below it, so exceeding it is a bug.
        max_replaced: most flat groups that may leave untrained with one batch.
        first_replaced: so many may with the first batch, if that is more.
    """

    def __init__(self, *, batch: int, capacity: int, max_replaced: int = 0, first_replaced: int = 0) -> None:
        self._batch = batch
        self._capacity = capacity
        self._max_replaced = max_replaced
        self._may_replace = max(max_replaced, first_replaced)
        self._waiting: list[Waiting] = []
        self._flat: list[Waiting] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._flat)

    @property
    def waiting(self) -> list[Waiting]:
        """The groups that wait, in the order in which they may leave."""
        return sorted([*self._waiting, *self._flat])

    @property
    def num_replaced(self) -> int:
        """How many of those that wait count for nothing, because others take their places."""
        return min(len(self._flat), self._may_replace)

    @property
    def num_trainable(self) -> int:
        """How many of those that wait will be trained."""
        return len(self) - self.num_replaced

    def put(self, waiting: Waiting) -> None:
        insort(self._flat if waiting.group.is_flat else self._waiting, waiting)
        assert self.num_trainable <= self._capacity, f"{self.num_trainable} groups wait and {self._capacity} may"

    def take(self, *, step: int, running: Counter[int]) -> Departure | None:
        """What leaves for step number `step`, or None while it has to wait for groups that are running.

        Until `renew`, the flat groups that left with it count against `max_replaced`.

        Args:
            running: how many groups are running, by deadline.
        """
        if self.num_trainable < self._batch:
            return None
        replaced, kept = self._flat[: self._may_replace], self._flat[self._may_replace :]
        trainable = sorted([*self._waiting, *kept])
        batch = trainable[: self._batch]
        if not self._others_can_wait(trainable[self._batch :], step, running):
            return None
        left = {waiting.position for waiting in batch}
        self._waiting = [waiting for waiting in self._waiting if waiting.position not in left]
        self._flat = [waiting for waiting in kept if waiting.position not in left]
        self._may_replace -= len(replaced)
        return Departure(batch=tuple(batch), replaced=tuple(replaced))

    def renew(self) -> None:
        """The step is trained: with the next one `max_replaced` flat groups may be replaced again."""
        self._may_replace = self._max_replaced

    def _others_can_wait(self, others: list[Waiting], step: int, running: Counter[int]) -> bool:
        """Whether, for each deadline to come, the open groups due by then fit into the steps that are left until then.

        The batch holds as many groups with early deadlines as any choice could, so if it does not do, none does.
        """
        still_open = running + Counter(waiting.deadline for waiting in others)
        due = 0
        for deadline in sorted(still_open):
            due += still_open[deadline]
            if due > (deadline - step) * self._batch:
                return False
        return True
