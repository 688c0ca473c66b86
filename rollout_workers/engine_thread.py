"""The one thread that owns an engine: between two steps it takes orders, and it hands out groups as they end.

It must not know asyncio, Ray or transports. Invariants: the engine is touched by this thread alone; every future that
was given out ends, with a group, with a typed error, or cancelled; a broken engine accepts nothing more.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from services.contracts.errors import TriremeError, VersionMismatch, WeightSyncError, WorkerLost
from services.contracts.records import SampleRequest, WeightManifest
from services.contracts.seeds import sampling_seed
from services.transport.device_weights import Pull

if TYPE_CHECKING:
    from rollout_workers.engine import Completion, Engine, Loaded

Result = TypeVar("Result")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Group:
    """A group under way: its completions in order of their sample index, None while one is still sampled."""

    future: Future[list[Completion]]
    orders: dict[str, int]
    completions: list[Completion | None]


class EngineThread:
    """Starts at once; `ready` ends when the engine is built.

    Args:
        build: makes the engine; called in the thread.
        name: what errors and the thread are called.
    """

    def __init__(self, build: Callable[[], Engine], *, name: str) -> None:
        self.ready: Future[None] = Future()
        self._build = build
        self._name = name
        self._inbox: SimpleQueue[Callable[[Engine], object] | None] = SimpleQueue()
        self._groups: dict[str, _Group] = {}
        self._attempts = itertools.count()
        self._waiting: set[Future[Any]] = set()  # Any: each call has a result of its own type
        self._broken: str | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def sample(self, request: SampleRequest, *, first: int = 0, turn: int = 0) -> Future[list[Completion]]:
        """Order a group; its completions come in order of sample index. Cancelling the future stops the sampling.

        Args:
            first: sample index of the first completion.
            turn: of the policy's turns in a dialogue the one that this is, from 0.

        The future may raise `UserError` (prompt too long), `WeightSyncError` (nothing is served), `WorkerLost`.
        """
        future: Future[list[Completion]] = Future()
        attempt = next(self._attempts)
        future.add_done_callback(lambda ended: self._abort(attempt) if ended.cancelled() else None)
        self._submit(future, lambda engine: self._begin(engine, attempt, request, future, first=first, turn=turn))
        return future

    def load(self, manifest: WeightManifest, weights: Sequence[memoryview] | Pull) -> Future[Loaded]:
        """Load a version between two steps; if that fails, groups under way fail with the same error."""
        return self.call(lambda engine: self._load(engine, manifest, weights))

    def call(self, order: Callable[[Engine], Result]) -> Future[Result]:
        """Have the thread run `order` between two steps."""
        future: Future[Result] = Future()
        self._submit(future, lambda engine: _end(future, order(engine)))
        return future

    def close(self, timeout_s: float) -> None:
        """Stop the thread and free the engine; whatever still waits fails with `WorkerLost`."""
        self._inbox.put(None)
        self._thread.join(timeout_s)

    def _submit(self, future: Future[Any], run: Callable[[Engine], object]) -> None:  # Any: as in `_waiting`
        def order(engine: Engine) -> None:
            if future.cancelled():
                return
            try:
                run(engine)
            except TriremeError as error:
                _fail(future, error)

        with self._lock:
            if self._broken is not None:
                return _fail(future, WorkerLost(self._broken))
            self._waiting.add(future)
            self._inbox.put(order)
        return future.add_done_callback(self._waiting.discard)

    def _run(self) -> None:
        try:
            engine = self._build()
        except Exception as error:  # noqa: BLE001  # The thread's edge: whoever waits for `ready` raises it.
            self._break(f"the engine of {self._name} did not start: {error!r}")
            return self.ready.set_exception(error)
        self.ready.set_result(None)
        try:
            self._serve(engine)
        except Exception as error:  # noqa: BLE001  # As above: every waiting call raises it.
            _log.exception("the engine of %s failed", self._name)
            self._break(f"the engine of {self._name} failed: {error!r}")
        else:
            self._break(f"{self._name} was closed")
        engine.close()
        return None

    def _serve(self, engine: Engine) -> None:
        while True:
            with suppress(Empty):
                while True:
                    order = self._inbox.get(block=not engine.busy)  # No deadline: `close` ends it.
                    if order is None:
                        return
                    order(engine)
            for completion in engine.step():
                self._deliver(completion)

    def _begin(
        self,
        engine: Engine,
        attempt: int,
        request: SampleRequest,
        future: Future[list[Completion]],
        *,
        first: int,
        turn: int,
    ) -> None:
        sampling = request.sampling
        orders = {f"{attempt}/{index}": index for index in range(sampling.num_samples)}
        try:
            for order, index in orders.items():
                seed = sampling_seed(
                    run_seed=sampling.seed,
                    prompt_id=request.prompt.id,
                    sample_index=first + index,
                    policy_version=engine.version,
                    turn=turn,
                )
                engine.add(order, request.prompt.token_ids, sampling, seed=seed)
        except TriremeError:
            engine.abort(list(orders))
            raise
        group = _Group(future=future, orders=orders, completions=[None] * len(orders))
        self._groups |= dict.fromkeys(orders, group)

    def _deliver(self, completion: Completion) -> None:
        group = self._groups.pop(completion.order)
        group.completions[group.orders[completion.order]] = completion
        completions = [one for one in group.completions if one is not None]
        if len(completions) == len(group.orders):
            _end(group.future, completions)

    def _load(self, engine: Engine, manifest: WeightManifest, weights: Sequence[memoryview] | Pull) -> Loaded:
        try:
            return engine.load(manifest, weights)
        except VersionMismatch:
            raise
        except WeightSyncError as error:
            for group in self._groups.values():
                _fail(group.future, error)
            self._groups.clear()
            raise

    def _abort(self, attempt: int) -> None:
        def order(engine: Engine) -> None:
            orders = [name for name in self._groups if name.split("/")[0] == str(attempt)]
            engine.abort(orders)
            for name in orders:
                del self._groups[name]

        self._inbox.put(order)

    def _break(self, message: str) -> None:
        """End every future that was given out; later calls fail at once."""
        with self._lock:
            self._broken = message
            waiting = list(self._waiting)
        for future in waiting:
            _fail(future, WorkerLost(message))


def _end(future: Future[Result], result: Result) -> None:
    with suppress(InvalidStateError):  # Cancelled meanwhile: nobody waits.
        future.set_result(result)


def _fail(future: Future[Any], error: TriremeError) -> None:  # Any: a failure fits a future of every type
    with suppress(InvalidStateError):
        future.set_exception(error)
