"""Gathers the samples of many requests into batches for one scorer.

It must not know gRPC or what a score is. Invariants: every sample accepted is scored once, or dropped because its
caller left; at most `max_pending_samples` are accepted and unanswered; no sample waits for company longer than
`max_wait_s` while the scorer is free.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

from reward_server.scorer import Scorer
from services.contracts.records import Failure, Reward, RewardSample

Answer: TypeAlias = "asyncio.Future[Reward | Failure]"


class Overloaded(Exception):
    """The bound on pending samples is reached; the same call may be accepted later."""


class Batcher:
    """Hands batches to `scorer`, at most `max_running` at a time.

    Args:
        max_batch_samples: most samples in one batch.
        max_wait_s: longest wait for a batch to fill, in seconds.
        max_pending_samples: most samples accepted and not yet answered.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        max_batch_samples: int,
        max_wait_s: float,
        max_pending_samples: int,
        max_running: int,
    ) -> None:
        self._scorer = scorer
        self._max_batch_samples = max_batch_samples
        self._max_wait_s = max_wait_s
        self._max_pending_samples = max_pending_samples
        self._max_running = max_running
        self._num_pending = 0
        self._waiting: deque[tuple[RewardSample, Answer]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def submit(self, samples: Sequence[RewardSample]) -> list[Reward | Failure]:
        """One outcome per sample, in order. Cancelling it takes samples that wait out of the queue.

        Raises:
            Overloaded: there is no room for that many.
        """
        if self._num_pending + len(samples) > self._max_pending_samples:
            raise Overloaded(
                f"overloaded: {self._num_pending} samples are pending and {len(samples)} more would exceed "
                f"max_pending_samples ({self._max_pending_samples}); try again later"
            )
        answers = [self._enqueue(sample) for sample in samples]
        self._dispatch(have_waited=False)
        return await asyncio.gather(*answers)

    def _enqueue(self, sample: RewardSample) -> Answer:
        answer: Answer = asyncio.get_running_loop().create_future()
        answer.add_done_callback(self._forget)
        self._num_pending += 1
        self._waiting.append((sample, answer))
        return answer

    def _forget(self, _: Answer) -> None:
        self._num_pending -= 1

    def _dispatch(self, *, have_waited: bool) -> None:
        """Start every batch that is full, or due."""
        while self._waiting and len(self._running) < self._max_running:
            if len(self._waiting) < self._max_batch_samples and not have_waited:
                return self._wait()
            task = asyncio.create_task(self._score(self._next_batch()))
            self._running.add(task)
            task.add_done_callback(self._finish)
        return None

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._max_wait_s, self._stop_waiting)

    def _stop_waiting(self) -> None:
        self._timer = None
        self._dispatch(have_waited=True)

    def _next_batch(self) -> list[tuple[RewardSample, Answer]]:
        batch: list[tuple[RewardSample, Answer]] = []
        while self._waiting and len(batch) < self._max_batch_samples:
            sample, answer = self._waiting.popleft()
            if not answer.done():
                batch.append((sample, answer))
        return batch

    async def _score(self, batch: Sequence[tuple[RewardSample, Answer]]) -> None:
        outcomes = await self._scorer.score([sample for sample, _ in batch]) if batch else []
        for (_, answer), outcome in zip(batch, outcomes, strict=True):
            if not answer.done():
                answer.set_result(outcome)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._dispatch(have_waited=True)
        if not task.cancelled():
            task.result()  # A scorer never raises; if one does, the event loop reports it.
