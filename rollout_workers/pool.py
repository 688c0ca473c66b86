"""All rollout workers, seen as one source of rollouts.

It must not know Ray, engines or what a prompt says. Invariants: a request ends exactly once, with a group or a typed
error; a request whose worker died goes to another one, once; a worker serves in the pool only with the pool's newest
version; no wait here is longer than the deadline of the worker's own call.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.contracts.errors import DeadlineExceeded, WorkerLost
from services.contracts.records import Publication, RolloutGroup, SampleRequest, SyncReceipt


class Worker(Protocol):
    """A rollout worker, wherever it runs. Each call ends within a deadline of its own, with `DeadlineExceeded`."""

    async def sample(self, request: SampleRequest) -> RolloutGroup:
        """Sample one group. Raises `WorkerLost` when the worker's process or engine is gone."""
        ...

    async def load_weights(self, publication: Publication) -> SyncReceipt:
        """Load and verify a version, then serve it. Raises `WeightSyncError`, `WorkerLost`."""
        ...


@dataclass(eq=False, slots=True)
class _Member:
    worker: Worker
    number: int
    num_outstanding: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class RolloutPool:
    """Implements the `RolloutSource` Protocol.

    Args:
        workers: those to begin with; they are numbered in this order, and ties go to the lowest number.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._members: list[_Member] = []
        self._num_ever = 0
        self._newest: Publication | None = None
        for worker in workers:
            self._join(worker)

    @property
    def workers(self) -> Sequence[Worker]:
        """Those that are given requests."""
        return [member.worker for member in self._members]

    async def sample(self, request: SampleRequest) -> RolloutGroup:
        """Sample one group on the least loaded worker.

        Raises:
            WorkerLost: two workers died over this request, or none is left.
            DeadlineExceeded: the worker gave no group in time.
        """
        try:
            return await self._sample_on(self._least_loaded(), request)
        except WorkerLost:
            return await self._sample_on(self._least_loaded(), request)

    async def load_weights(self, publication: Publication) -> Sequence[SyncReceipt]:
        """Have every worker load a version; receipts come in the order of the workers.

        Workers found dead leave the pool. Other failures are raised once every worker has answered, so that none is
        still loading when this returns.

        Raises:
            WorkerLost: no worker is left.
            WeightSyncError: a worker refused the weights.
            DeadlineExceeded: a worker gave no receipt in time.
        """
        self._newest = publication
        members = list(self._members)
        outcomes = await asyncio.gather(
            *(self._load_on(member, publication) for member in members), return_exceptions=True
        )
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for failure in failures:
            if not isinstance(failure, WorkerLost):
                raise failure
        if not self._members:
            raise failures[0] if failures else _nobody_left()
        return [outcome for outcome in outcomes if isinstance(outcome, SyncReceipt)]

    async def add(self, worker: Worker) -> SyncReceipt | None:
        """Take in a worker, after it loaded the newest version; returns its receipt, if anything was published.

        Raises:
            WeightSyncError, DeadlineExceeded, WorkerLost: the worker did not join.
        """
        receipt = None
        while (newest := self._newest) is not None and (receipt is None or receipt.version < newest.manifest.version):
            receipt = await worker.load_weights(newest)
        self._join(worker)
        return receipt

    async def remove(self, worker: Worker, *, timeout_s: float) -> None:
        """Give a worker no more requests, and wait until those that it has ended.

        Raises:
            DeadlineExceeded: some did not end in time; the worker is out of the pool all the same.
        """
        member = next(member for member in self._members if member.worker is worker)
        self._members.remove(member)
        if member.num_outstanding:
            try:
                await asyncio.wait_for(member.idle.wait(), timeout_s)
            except TimeoutError as error:
                raise DeadlineExceeded(
                    waited_for=f"{member.num_outstanding} requests of rollout worker {member.number} to end",
                    waited_s=timeout_s,
                    advice="let it go on, or end its process: then its requests go to other workers",
                ) from error

    def _join(self, worker: Worker) -> None:
        self._members.append(_Member(worker=worker, number=self._num_ever))
        self._num_ever += 1

    def _least_loaded(self) -> _Member:
        if not self._members:
            raise _nobody_left()
        return min(self._members, key=lambda member: (member.num_outstanding, member.number))

    async def _sample_on(self, member: _Member, request: SampleRequest) -> RolloutGroup:
        member.num_outstanding += 1
        member.idle.clear()
        try:
            return await member.worker.sample(request)
        except WorkerLost:
            self._lose(member)
            raise
        finally:
            member.num_outstanding -= 1
            if not member.num_outstanding:
                member.idle.set()

    async def _load_on(self, member: _Member, publication: Publication) -> SyncReceipt:
        try:
            return await member.worker.load_weights(publication)
        except WorkerLost:
            self._lose(member)
            raise

    def _lose(self, member: _Member) -> None:
        if member in self._members:
            self._members.remove(member)


def _nobody_left() -> WorkerLost:
    return WorkerLost("no rollout worker is left; see the workers' logs for why they died, then resume the run")
