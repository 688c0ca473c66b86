"""Workers that share their GPU with a learner, and give it up while that one trains.

It must not know the learner. Invariants: when `sleep_all` returns, every worker sleeps or is dead, and so holds no
memory; within `all_asleep` none starts either. Loading weights wakes them.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Protocol

from services.contracts.errors import WorkerLost


class Sleeper(Protocol):
    """A worker that can give up its GPU's memory. Each call ends within a deadline of its own."""

    async def sleep(self) -> None:
        """Let go of the memory; what is being sampled waits. Raises `WorkerLost`, `DeadlineExceeded`."""
        ...


@asynccontextmanager
async def all_asleep(gpu: asyncio.Lock, workers: Callable[[], Iterable[Sleeper]]) -> AsyncIterator[None]:
    """A time in which no worker uses the GPU. Raises as `sleep_all` does.

    Args:
        gpu: held by a worker from its start until it has its first weights, whose own deadlines bound the wait.
        workers: those that there are once it is free.
    """
    async with gpu:
        await sleep_all(workers())
        yield


async def sleep_all(workers: Iterable[Sleeper]) -> None:
    """Have all of them sleep. Raises what a worker raised, unless it is lost, once all have answered."""
    outcomes = await asyncio.gather(*(worker.sleep() for worker in workers), return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None and not isinstance(outcome, WorkerLost):
            raise outcome
