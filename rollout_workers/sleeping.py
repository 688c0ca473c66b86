"""Workers that share their GPU with a learner, and give it up while that one trains.

It must not know the learner. Invariant: when `sleep_all` returns, every worker sleeps or is dead, and so holds no
memory. Loading weights wakes them.
"""

import asyncio
from collections.abc import Iterable
from typing import Protocol

from services.contracts.errors import WorkerLost


class Sleeper(Protocol):
    """A worker that can give up its GPU's memory. Each call ends within a deadline of its own."""

    async def sleep(self) -> None:
        """Let go of the memory; what is being sampled waits. Raises `WorkerLost`, `DeadlineExceeded`."""
        ...


async def sleep_all(workers: Iterable[Sleeper]) -> None:
    """Before each learner step. Raises what a worker raised, unless it is lost, once all have answered."""
    outcomes = await asyncio.gather(*(worker.sleep() for worker in workers), return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None and not isinstance(outcome, WorkerLost):
            raise outcome
