"""Bounds what is under way, and gathers the samples of many requests into batches for a scorer that wants batches.

It must not know gRPC or what a score is. Calls are handed on as they are where the scorer takes no batches. A batch
costs its number of samples times the largest cost among them, as it does for a model that pads them to one length;
where a sample costs 1 that is their number. Invariants: every sample accepted is scored once, or dropped because its
caller left; at most `max_pending_samples` are accepted and unanswered; no sample waits for company longer than
`max_wait_s` while the scorer is free, nor for more than one window of others.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass

from reward_server.scorer import Scorer
from services.contracts.records import Failure, Reward, RewardSample

Outcomes = dict[int, Reward | Failure]


@dataclass(slots=True)
class Waiting:
    """A sample that is not yet given to the scorer: the one at `index` of those that were submitted with it."""

    sample: RewardSample
    cost: int
    index: int
    outcomes: Outcomes
    """Of those; complete when `answer` is set."""
    num_outcomes: int
    answer: "asyncio.Future[Outcomes]"


class Overloaded(Exception):
    """The bound on pending samples is reached; the same call may be accepted later."""


class Batcher:
    """Hands batches to `scorer`, at most `max_running` at a time.

    Args:
        max_batch_cost: largest cost of a batch; a sample that costs more is a batch by itself.
        max_wait_s: longest wait for a batch to fill, in seconds.
        max_pending_samples: most samples accepted and not yet answered.
        cost: what a sample costs, at least 1.
        window: how many batches' worth of the oldest samples are sorted by cost before they are cut into batches.

    Attributes:
        num_pending: samples accepted and not yet answered.
        note_batch: told the number of samples of each batch, or call that was handed on.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        max_batch_cost: int,
        max_wait_s: float,
        max_pending_samples: int,
        max_running: int,
        cost: Callable[[RewardSample], int] = lambda sample: 1,
        window: int = 1,
    ) -> None:
        self._scorer = scorer
        self._max_batch_cost = max_batch_cost
        self._cost = cost
        self._window_cost = window * max_batch_cost
        self._max_wait_s = max_wait_s
        self._max_pending_samples = max_pending_samples
        self._max_running = max_running
        self.num_pending = 0
        self.note_batch: Callable[[int], None] = lambda size: None
        self._waiting: deque[Waiting] = deque()
        self._waiting_cost = 0
        self._window: list[Waiting] = []
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def num_waiting(self) -> int:
        """Samples that are not yet scored; about that where the scorer takes calls as they are."""
        in_calls = 0 if self._scorer.batched else max(self.num_pending - self._max_running, 0)
        return len(self._waiting) + len(self._window) + in_calls

    async def submit(self, samples: Sequence[RewardSample]) -> list[Reward | Failure]:
        """One outcome per sample, in order. Cancelling it takes samples that wait out of the queue.

        Raises:
            Overloaded: there is no room for that many.
        """
        if self.num_pending + len(samples) > self._max_pending_samples:
            raise Overloaded(
                f"overloaded: {self.num_pending} samples are pending and {len(samples)} more would exceed "
                f"max_pending_samples ({self._max_pending_samples}); try again later"
            )
        if not samples:
            return []
        self.num_pending += len(samples)
        try:
            if self._scorer.batched:
                return await self._in_batches(samples)
            self.note_batch(len(samples))
            return list(await self._scorer.score(samples))
        finally:
            self.num_pending -= len(samples)

    async def _in_batches(self, samples: Sequence[RewardSample]) -> list[Reward | Failure]:
        answer: asyncio.Future[Outcomes] = asyncio.get_running_loop().create_future()
        self._enqueue(samples, answer)
        self._dispatch(have_waited=False)
        outcomes = await answer
        return [outcomes[index] for index in range(len(samples))]

    def _enqueue(self, samples: Sequence[RewardSample], answer: "asyncio.Future[Outcomes]") -> None:
        outcomes: Outcomes = {}
        for index, sample in enumerate(samples):
            cost = self._cost(sample)
            self._waiting.append(Waiting(sample, cost, index, outcomes, len(samples), answer))
            self._waiting_cost += cost

    def _dispatch(self, *, have_waited: bool) -> None:
        """Start every batch that is full, or due."""
        while (self._window or self._waiting) and len(self._running) < self._max_running:
            if not self._window:
                if self._waiting_cost < self._max_batch_cost and not have_waited:
                    return self._wait()
                self._fill_window()
            # In a context of its own: a batch may be of many calls, so that its log lines are of none.
            task = asyncio.create_task(self._score(self._next_batch()), context=Context())
            self._running.add(task)
            task.add_done_callback(self._finish)
        return None

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._max_wait_s, self._stop_waiting)

    def _stop_waiting(self) -> None:
        self._timer = None
        self._dispatch(have_waited=True)

    def _fill_window(self) -> None:
        """Take the oldest samples that are still wanted, cheapest first."""
        cost = 0
        while self._waiting and (not cost or cost + self._waiting[0].cost <= self._window_cost):
            waiting = self._waiting.popleft()
            self._waiting_cost -= waiting.cost
            if not waiting.answer.done():
                self._window.append(waiting)
                cost += waiting.cost
        self._window.sort(key=lambda waiting: waiting.cost)

    def _next_batch(self) -> list[Waiting]:
        wanted = [waiting for waiting in self._window if not waiting.answer.done()]
        size = num_fitting([waiting.cost for waiting in wanted], self._max_batch_cost)
        self._window = wanted[size:]
        return wanted[:size]

    async def _score(self, batch: Sequence[Waiting]) -> None:
        if batch:
            self.note_batch(len(batch))
        outcomes = await self._scorer.score([waiting.sample for waiting in batch]) if batch else []
        for waiting, outcome in zip(batch, outcomes, strict=True):
            waiting.outcomes[waiting.index] = outcome
            if len(waiting.outcomes) == waiting.num_outcomes and not waiting.answer.done():
                waiting.answer.set_result(waiting.outcomes)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._dispatch(have_waited=True)
        if not task.cancelled():
            task.result()  # A scorer never raises; if one does, the event loop reports it.


def num_fitting(costs: Sequence[int], max_cost: int) -> int:
    """How many of these ascending costs make one batch, which costs their number times the largest; at least one."""
    for index, cost in enumerate(costs):
        if index and (index + 1) * cost > max_cost:
            return index
    return len(costs)
