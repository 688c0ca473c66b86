"""All rollout workers, seen as one source of rollouts.

It must not know Ray, engines, how workers start or what a prompt says; `dispatch` decides, this carries out.
Invariants: a request ends exactly once, with a group or a typed error; the requests of a lost worker go to others; a
worker serves only with the pool's newest weights; what the watcher cannot take down ends every request; no wait here is
longer than the deadline of a worker's own call, or of the fleet that brings workers up.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rollout_workers.dispatch import Assignment, Dispatcher
from services.contracts.errors import DeadlineExceeded, TriremeError, WeightSyncError, WorkerLost
from services.contracts.records import NOT_SAMPLED, Publication, RolloutGroup, SampleRequest, SyncReceipt

MANY = 1 << 30


class Worker(Protocol):
    """A rollout worker, wherever it runs. Each call ends within a deadline of its own, with `DeadlineExceeded`."""

    async def sample(self, request: SampleRequest) -> RolloutGroup:
        """Sample one group. Raises `WorkerLost` when the worker's process or engine is gone."""
        ...

    async def load_weights(self, publication: Publication) -> SyncReceipt:
        """Load and verify a version, then serve it. Raises `WorkerLost`, and any other `TriremeError` to refuse it."""
        ...

    async def health(self) -> int:
        """Show that sampling goes on, and return the policy version. Raises `WorkerLost`."""
        ...


class PoolWatcher(Protocol):
    """Who wants to know what happens in a pool. A `TriremeError` from it ends every request."""

    def on_attempt(self, event: str, prompt_id: str, assignment: Assignment, detail: int | str | None) -> None:
        """An attempt was `dispatched` (detail: the worker's version), `requeued` (the reason) or `fenced`."""
        ...

    def on_synced(self, receipt: SyncReceipt, publication: Publication) -> None:
        """A worker serves a version."""
        ...


@dataclass(eq=False, slots=True)
class _Order:
    request: SampleRequest
    future: asyncio.Future[RolloutGroup]
    task: asyncio.Task[None] | None = None

    def settle(self, outcome: RolloutGroup | TriremeError) -> None:
        """Answer whoever ordered, unless that one was answered or has gone."""
        if self.future.done():
            return
        if isinstance(outcome, TriremeError):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class RolloutPool:
    """Implements the `RolloutSource` Protocol.

    Args:
        workers: those to begin with, numbered from 0. Further ones come by `add`.
        max_outstanding: most groups that one worker holds; more wait here, for whoever has room first.
        max_attempts: workers that may be lost over one request before it ends with `WorkerLost`.
        watcher: is told of attempts and syncs.

    Attributes:
        on_lost: called with number and reason when a worker was lost.
        awaits_workers: whether more may come when none is left; else requests fail at once then.
        failure: what every request fails with, now and later; None while all is well.
    """

    def __init__(
        self,
        workers: Sequence[Worker] = (),
        *,
        max_outstanding: int = MANY,
        max_attempts: int = 3,
        watcher: PoolWatcher | None = None,
    ) -> None:
        self._dispatcher = Dispatcher(max_outstanding=max_outstanding, max_attempts=max_attempts)
        self._max_attempts = max_attempts
        self._watcher = watcher
        self._workers: dict[int, Worker] = {}
        self._versions: dict[int, int] = {}
        self._orders: dict[int, _Order] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._newest: Publication | None = None
        self._drained: dict[int, asyncio.Event] = {}
        self.on_lost: Callable[[int, str], None] = lambda number, reason: None
        self.awaits_workers = False
        self.failure: TriremeError | None = None
        for number, worker in enumerate(workers):
            self._join(number, worker, version=NOT_SAMPLED)

    @property
    def workers(self) -> Sequence[Worker]:
        """Those that are given requests."""
        return [worker for number, worker in self._workers.items() if self._dispatcher.is_serving(number)]

    @property
    def num_waiting(self) -> int:
        """Requests that no worker has yet."""
        return self._dispatcher.num_waiting

    def outstanding(self, number: int) -> int:
        """Requests that this worker has."""
        return self._dispatcher.outstanding(number)

    def version(self, number: int) -> int:
        """The version that this worker serves; `NOT_SAMPLED` before its first."""
        return self._versions.get(number, NOT_SAMPLED)

    def is_slow(self, number: int) -> bool:
        """Whether this worker is given next to nothing, as it takes far longer than the others."""
        return self._dispatcher.is_slow(number)

    async def sample(self, request: SampleRequest) -> RolloutGroup:
        """Sample one group on the least loaded worker. Cancelling the call stops the sampling.

        Raises:
            WorkerLost: too many workers were lost over this request, or none is left and none will come.
            DeadlineExceeded: a worker that is alive gave no group in time.
        """
        if self.failure is not None:
            raise self.failure
        order = _Order(request, asyncio.get_running_loop().create_future())
        number = self._dispatcher.submit()
        self._orders[number] = order
        self._hand_out()
        try:
            return await order.future
        finally:
            del self._orders[number]
            self._dispatcher.forget(number)
            if order.task is not None:
                order.task.cancel()
            self._hand_out()

    async def load_weights(self, publication: Publication) -> Sequence[SyncReceipt]:
        """Have every serving worker load a version; receipts come in the order of the workers.

        Workers that die, do not answer in time, or refuse what others accept, for whatever reason, are lost. Where all
        refuse, their error is raised once every worker has answered, so that none is still loading when this returns.

        Raises:
            WorkerLost: no worker is left, and none will come.
            TriremeError: why the first worker refused the weights, where all did; what the watcher could not take down.
        """
        self._newest = publication
        numbers = [number for number in self._workers if self._dispatcher.is_serving(number)]
        outcomes = await asyncio.gather(*(self._load(number, publication) for number in numbers))
        # Without a worker, a learner that has all its groups may still come to the end.
        if self.failure is not None and not isinstance(self.failure, WorkerLost):
            raise self.failure
        receipts = [outcome for outcome in outcomes if isinstance(outcome, SyncReceipt)]
        refusals = [o for o in outcomes if not isinstance(o, SyncReceipt | WorkerLost | DeadlineExceeded)]
        if refusals and not receipts:
            raise refusals[0]
        for number, outcome in zip(numbers, outcomes, strict=True):
            if not isinstance(outcome, SyncReceipt):
                self.lose(number, str(outcome))
        if not receipts and not self.awaits_workers:
            raise next((o for o in outcomes if not isinstance(o, SyncReceipt)), _nobody_left())
        return receipts

    async def add(self, number: int, worker: Worker) -> SyncReceipt | None:
        """Take in a worker, after it loaded the newest version; returns its receipt, if anything was published.

        Raises:
            WeightSyncError, DeadlineExceeded, WorkerLost: the worker did not join.
            TriremeError: what every request fails with.
        """
        if self.failure is not None:
            raise self.failure
        receipt = None
        while (newest := self._newest) is not None and (
            receipt is None or (receipt.generation, receipt.version) < newest.manifest.age
        ):
            receipt = await worker.load_weights(newest)
            self._synced(receipt, newest)
        self._join(number, worker, version=receipt.version if receipt else NOT_SAMPLED)
        return receipt

    async def remove(self, number: int, *, timeout_s: float) -> bool:
        """Give a worker no more requests, wait until those that it has ended, and let it go.

        Returns:
            Whether they ended in time; those that did not go to other workers.
        """
        if number not in self._workers:
            return True
        self._dispatcher.drain(number)
        drained = self._drained[number] = asyncio.Event()
        self._hand_out()
        try:
            await asyncio.wait_for(drained.wait(), timeout_s)
        except TimeoutError:
            return False
        finally:
            del self._drained[number]
            self._leave(number, "it was drained", at_fault=False)
        return True

    def lose(self, number: int, reason: str) -> None:
        """This worker is dead, hung or refused its weights: its requests go to others. Unknown numbers are ignored."""
        if number not in self._workers:
            return
        self._leave(number, reason, at_fault=True)
        self.on_lost(number, reason)
        if not self._dispatcher.num_serving and not self.awaits_workers:
            self.fail(_nobody_left())

    def fail(self, error: TriremeError) -> None:
        """Every request fails with this error, now and later, unless an earlier one came first."""
        self.failure = self.failure or error
        for order in self._orders.values():
            order.settle(self.failure)

    @contextmanager
    def must_be_told(self) -> Iterator[None]:
        """For what a watcher is told: nobody would see the error of the task in which that fails."""
        try:
            yield
        except TriremeError as error:
            self.fail(error)

    def _join(self, number: int, worker: Worker, *, version: int) -> None:
        self._workers[number] = worker
        self._versions[number] = version
        self._dispatcher.join(number)
        self._hand_out()

    def _leave(self, number: int, reason: str, *, at_fault: bool) -> None:
        if self._workers.pop(number, None) is None:
            return
        again, ended = self._dispatcher.leave(number, at_fault=at_fault)
        for assignment in (*again, *ended):
            self._attempt_is("requeued", assignment, reason)
        for assignment in ended:
            order = self._orders[assignment.request]
            order.settle(_attempts_spent(order.request.prompt.id, self._max_attempts, reason))
        self._hand_out()

    def _hand_out(self) -> None:
        while self.failure is None and (assignment := self._dispatcher.next_assignment()) is not None:
            order = self._orders[assignment.request]
            self._attempt_is("dispatched", assignment, self._versions[assignment.worker])
            if self.failure is not None:
                self._dispatcher.forget(assignment.request)  # It was not taken down, so it must not happen.
                break
            order.task = asyncio.create_task(self._attempt(assignment, order, self._workers[assignment.worker]))
            # A lost attempt goes on until its call ends, so that a late answer is seen, and ignored.
            self._tasks.add(order.task)
            order.task.add_done_callback(self._tasks.discard)
        for number, drained in self._drained.items():
            if not self._dispatcher.outstanding(number):
                drained.set()

    async def _attempt(self, assignment: Assignment, order: _Order, worker: Worker) -> None:
        outcome: RolloutGroup | TriremeError
        num_tokens, now = 0, asyncio.get_running_loop().time
        started = now()
        try:
            outcome = await worker.sample(order.request)
            num_tokens = max((rollout.num_completion_tokens for rollout in outcome.rollouts), default=0)
        except (WorkerLost, WeightSyncError) as error:
            return self.lose(assignment.worker, str(error))
        except TriremeError as error:
            outcome = error
        ended = self._dispatcher.end(assignment, seconds=now() - started, num_tokens=num_tokens)
        if not ended:
            self._attempt_is("fenced", assignment, None, prompt_id=order.request.prompt.id)
        else:
            order.settle(outcome)
        return self._hand_out()

    async def _load(self, number: int, publication: Publication) -> SyncReceipt | TriremeError:
        try:
            receipt = await self._workers[number].load_weights(publication)
        except TriremeError as error:
            return error
        if number in self._workers:
            self._versions[number] = receipt.version
            self._synced(receipt, publication)
        return receipt

    def _synced(self, receipt: SyncReceipt, publication: Publication) -> None:
        if self._watcher is not None:
            with self.must_be_told():
                self._watcher.on_synced(receipt, publication)

    def _attempt_is(
        self, event: str, assignment: Assignment, detail: int | str | None, *, prompt_id: str | None = None
    ) -> None:
        if self._watcher is not None:
            prompt_id = prompt_id or self._orders[assignment.request].request.prompt.id
            with self.must_be_told():
                self._watcher.on_attempt(event, prompt_id, assignment, detail)


def _nobody_left() -> WorkerLost:
    return WorkerLost("no rollout worker is left; see the workers' logs for why they died, then resume the run")


def _attempts_spent(prompt_id: str, max_attempts: int, reason: str) -> WorkerLost:
    return WorkerLost(
        f"{max_attempts} rollout workers were lost while they sampled prompt {prompt_id}; the last: {reason}. Look at "
        "the workers' logs, and leave that prompt out if it is what kills them"
    )
