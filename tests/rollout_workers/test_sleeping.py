"""Workers that sleep together, and one that cannot."""

import asyncio

import pytest

from rollout_workers.sleeping import sleep_all
from services.contracts.errors import DeadlineExceeded, WorkerLost


class Sleepy:
    """Says what it did; falls asleep after so many turns of the event loop."""

    def __init__(self, *, turns: int = 0, error: Exception | None = None) -> None:
        self.asleep = False
        self._turns = turns
        self._error = error

    async def sleep(self) -> None:
        for _ in range(self._turns):
            await asyncio.sleep(0)
        if self._error:
            raise self._error
        self.asleep = True


async def test_all_sleep_once_it_returns() -> None:
    workers = [Sleepy(turns=3), Sleepy()]

    await sleep_all(workers)

    assert all(worker.asleep for worker in workers)


async def test_a_worker_that_does_not_sleep_is_told_once_the_others_do() -> None:
    slow = Sleepy(turns=3)
    late = DeadlineExceeded(waited_for="the engine to sleep", waited_s=1.0, advice="see its log")

    with pytest.raises(DeadlineExceeded):
        await sleep_all([Sleepy(error=late), slow])

    assert slow.asleep


async def test_a_dead_worker_holds_no_memory_and_stops_nobody() -> None:
    alive = Sleepy()

    await sleep_all([Sleepy(error=WorkerLost("gone")), alive])

    assert alive.asleep
