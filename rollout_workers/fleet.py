"""Keeps as many rollout workers as are wanted: brings them up, probes them, replaces the lost, drains the surplus.

It must not know Ray, engines or the loop. Invariants: a worker serves only after its process is ready and it loaded and
verified the pool's newest weights; a worker that was lost or drained has its process ended, also a frozen one; a number
is never used twice; every loss spends from a budget, and when that is spent the run goes on with fewer workers, or
ends when none is left.
"""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import nullcontext
from typing import Any, Protocol

from rollout_workers.config import RolloutConfig
from rollout_workers.pool import RolloutPool, Worker
from rollout_workers.restarts import RestartBudget
from services.contracts.errors import DeadlineExceeded, TriremeError, UserError, WorkerLost
from services.contracts.run_status import WorkerPhase, WorkerStatus
from services.transport.tasks import all_or_cancel

_log = logging.getLogger(__name__)


class LaunchedWorker(Worker, Protocol):
    """A worker whose process is ready."""

    @property
    def node(self) -> str:
        """Name or address of its machine."""
        ...

    @property
    def pid(self) -> int:
        """Its process there."""
        ...

    async def stop(self) -> None:
        """End its process and give its room back, also when it is frozen or gone; never raises, never hangs."""
        ...


class Launcher(Protocol):
    """Starts the processes of workers."""

    async def launch(self, number: int) -> LaunchedWorker:
        """Start a worker and wait until its model is loaded. Raises `UserError`, `DeadlineExceeded`, `WorkerLost`."""
        ...


class FleetWatcher(Protocol):
    """Who wants to know which workers come and go. A `TriremeError` from it ends every request to the pool."""

    def on_joined(self, number: int, worker: LaunchedWorker) -> None:
        """A worker's process is ready; it does not serve yet."""
        ...

    def on_left(self, number: int, reason: str) -> None:
        """A worker is out of the pool and its process is being ended."""
        ...


class Fleet:
    """The workers of one run.

    Args:
        pool: they serve there; from now on it waits for workers when it has none.
        launcher: starts their processes.
        config: bounds, probes and budget.
        watcher: is told who comes and goes.
        gpu: where workers share one with a learner, who holds this lock while it trains; a worker that comes up does.

    Attributes:
        pool: where the workers serve.
        target: how many workers there should be.
        trouble: why the last worker that was lost is not there, until one comes up.
    """

    def __init__(
        self,
        pool: RolloutPool,
        launcher: Launcher,
        config: RolloutConfig,
        *,
        watcher: FleetWatcher | None = None,
        gpu: asyncio.Lock | None = None,
    ) -> None:
        self.pool = pool
        self._launcher = launcher
        self._config = config
        self._watcher = watcher
        self._gpu = gpu
        self._workers: dict[int, LaunchedWorker] = {}
        self._phases: dict[int, WorkerPhase] = {}
        self._starts: dict[int, asyncio.Task[None]] = {}
        self._probes: dict[int, asyncio.Task[None]] = {}
        self._stopping: set[LaunchedWorker] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._budget = RestartBudget(max_restarts=config.max_restarts, window_s=config.restart_window_s)
        self._num_ever = 0
        self.target = 0
        self.trouble = ""
        pool.awaits_workers = True
        pool.on_lost = self._on_lost

    async def start(self, num_workers: int) -> None:
        """Bring up the first workers, all at once.

        Raises:
            TriremeError: the first reason why one of them did not come up; no other is on its way any more.
        """
        self.target = num_workers
        numbers = [self._new_number() for _ in range(num_workers)]
        await all_or_cancel([self._bring_up(number) for number in numbers])

    def scale(self, num_workers: int) -> None:
        """Have so many workers from now on; joining and draining go on after this returns.

        Raises:
            UserError: the number is out of bounds.
        """
        lowest, highest = self._config.min_workers, self._config.max_workers
        if not lowest <= num_workers <= highest:
            raise UserError(
                f"{num_workers} rollout workers are out of bounds; rollout.min_workers is {lowest} and "
                f"rollout.max_workers {highest}"
            )
        self.target = num_workers
        self._reconcile()

    @property
    def num_serving(self) -> int:
        return sum(phase == "serving" for phase in self._phases.values())

    def status(self) -> tuple[WorkerStatus, ...]:
        """Every worker that there is, in the order of their numbers."""
        return tuple(
            WorkerStatus(
                worker=number,
                phase=phase,
                version=self.pool.version(number),
                num_outstanding=self.pool.outstanding(number),
                node=self._workers[number].node if number in self._workers else "",
                pid=self._workers[number].pid if number in self._workers else 0,
                is_slow=self.pool.is_slow(number),
            )
            for number, phase in sorted(self._phases.items())
        )

    async def stop(self) -> None:
        """Start, probe and replace no more, and wait for the ends under way; the cluster ends the rest with itself."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            for number in sorted(self._workers):
                if self._watcher is not None:
                    self._watcher.on_left(number, "the run ended")
        finally:
            await asyncio.gather(*(worker.stop() for worker in self._stopping))
            self._workers.clear()
            self._phases.clear()

    def _new_number(self) -> int:
        number = self._num_ever
        self._num_ever += 1
        self._phases[number] = "starting"
        return number

    def _reconcile(self) -> None:
        """Start what is missing, drain what is too much: those that do not serve yet first, then the newest."""
        present = [number for number, phase in self._phases.items() if phase != "draining"]
        for _ in range(self.target - len(present) if self.pool.failure is None else 0):
            number = self._new_number()
            self._starts[number] = self._in_background(self._start_later(number, self._budget.pause_s))
        surplus = sorted(present, key=lambda number: (self._phases[number] == "serving", -number))
        for number in surplus[: max(0, len(present) - self.target)]:
            self._retire(number)

    async def _bring_up(self, number: int) -> None:
        async with self._gpu or nullcontext():
            worker = self._workers[number] = await self._launcher.launch(number)
            self._phases[number] = "loading"
            if self._watcher is not None:
                with self.pool.must_be_told():
                    self._watcher.on_joined(number, worker)
            await self.pool.add(number, worker)
        self._phases[number] = "serving"
        self._budget.came_up()
        self.trouble = ""
        self._probes[number] = self._in_background(self._probe(number, worker))

    async def _start_later(self, number: int, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        try:
            await self._bring_up(number)
        except TriremeError as error:
            # Where others serve, the run can wait until there is room.
            waits = isinstance(error, UserError) and bool(self.pool.workers)
            self._on_lost(number, f"it did not come up: {error}", counts=not waits)
        finally:
            self._starts.pop(number, None)

    def _retire(self, number: int) -> None:
        if self._phases[number] == "serving":
            self._phases[number] = "draining"
            self._in_background(self._drain(number))
        else:
            self._starts[number].cancel()
            self._end(number, "it was no longer wanted")

    async def _drain(self, number: int) -> None:
        in_time = await self.pool.remove(number, timeout_s=self._config.drain_timeout_s)
        if number in self._phases:  # Else it was lost meanwhile.
            self._end(number, "drained" if in_time else "drained; what it had not ended went to others")

    async def _probe(self, number: int, worker: Worker) -> None:
        """Ask for a token every so often; a worker that fails to give one several times in a row is lost."""
        missed = 0
        while missed < self._config.max_missed_probes:
            if not missed:
                await asyncio.sleep(self._config.health_interval_s)
            try:
                await worker.health()
                missed = 0
            except DeadlineExceeded:
                missed += 1
            except TriremeError as error:
                return self.pool.lose(number, str(error))
        return self.pool.lose(number, f"it gave no token in {missed} probes of {self._config.health_timeout_s:g} s")

    def _on_lost(self, number: int, reason: str, *, counts: bool = True) -> None:
        if number not in self._phases:
            return
        self.trouble = f"rollout worker {number} is lost: {reason}"
        _log.warning(self.trouble)
        was_wanted = self._phases[number] != "draining"
        self._end(number, reason)
        if was_wanted and not self._budget.spend(asyncio.get_running_loop().time(), counts=counts):
            self.target = max(0, self.target - 1)
            spent = (
                f"rollout.max_restarts ({self._config.max_restarts} in {self._config.restart_window_s:g} s) is spent"
            )
            _log.warning("it is not replaced: %s; %d workers are wanted now", spent, self.target)
            if not self.target:
                self.pool.fail(
                    WorkerLost(
                        f"no rollout worker is left and {spent}; the last was lost because {reason}. See the workers' "
                        "logs for why they died, then resume the run"
                    )
                )
        self._reconcile()

    def _end(self, number: int, reason: str) -> None:
        """Take a worker that is out of the pool off the books at once, and end its process behind."""
        del self._phases[number]
        probe = self._probes.pop(number, None)
        if probe is not None:
            probe.cancel()
        worker = self._workers.pop(number, None)
        if worker is not None:
            self._stopping.add(worker)  # At once, so that `stop` ends it if its task never gets to run.
            self._in_background(self._stop_worker(worker))
            if self._watcher is not None:
                with self.pool.must_be_told():
                    self._watcher.on_left(number, reason)

    async def _stop_worker(self, worker: LaunchedWorker) -> None:
        await worker.stop()
        self._stopping.discard(worker)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:  # Any: what nobody sends to it
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
