"""Simulated rollout workers: they sample numbers, in their own time, and die, freeze, thaw and load wrong weights.

It must not know the pool or the fleet. Invariants: a token is a function of its prompt, sample, and the version that
sampled it; a worker that was never given weights refuses to sample; no call outlives its deadline.
"""

import asyncio
import random
from collections.abc import Callable

from rollout_workers.config import RolloutConfig
from services.contracts.errors import CanaryMismatch, ChecksumMismatch, DeadlineExceeded, UserError, WorkerLost
from services.contracts.records import (
    NOT_SAMPLED,
    Prompt,
    Publication,
    Rollout,
    RolloutGroup,
    SampleRequest,
    SyncReceipt,
)
from services.contracts.seeds import sampling_seed
from tests.fakes import make_rollout
from tests.simulation.scenario import Scenario

TOKENS = 3
TORN = "torn"
Note = Callable[[str], None]


class SimulatedWorker:
    """Implements `LaunchedWorker`.

    Args:
        note: counts the faults that happen.
    """

    node = "simulated"

    def __init__(self, number: int, scenario: Scenario, rollout: RolloutConfig, draw: random.Random, note: Note):
        self.pid = 0
        self._number = number
        self._scenario = scenario
        self._rollout = rollout
        self._draw = draw
        self._note = note
        self._slowness = scenario.slow if draw.random() < 0.25 else 1.0
        self._is_dead = False
        self._is_frozen = False
        self._version = NOT_SAMPLED
        self._calls: dict[str, int] = {"sampling": 0, "loading": 0, "probing": 0}
        self._waits: set[asyncio.Future[None]] = set()
        self._timers: list[asyncio.TimerHandle] = []
        self._later(scenario.life_s, self.die)
        self._later(scenario.awake_s, self._freeze)

    def die(self) -> None:
        if not self._is_dead:
            busy = next((name for name in ("loading", "sampling") if self._calls[name]), "idle")
            self._note(f"worker died {busy}")
            self._end()

    async def sample(self, request: SampleRequest) -> RolloutGroup:
        assert self._version != NOT_SAMPLED, f"worker {self._number} was given a prompt before any weights"
        assert self._calls["sampling"] < self._rollout.groups_at_once, f"worker {self._number} was given too much"
        versions = []
        with _Counted(self._calls, "sampling"):
            deadline = self._now() + self._rollout.sample_timeout_s
            for _ in range(TOKENS):
                await self._work(self._slowness * min(self._draw.paretovariate(1.3), 20.0) / 3, deadline, "a group")
                versions.append(self._version)
        rollouts = [_rollout(request, index, versions) for index in range(request.sampling.num_samples)]
        if len(set(versions)) > 1:
            self._note("weights changed under a running request")
        return RolloutGroup(prompt=request.prompt, rollouts=tuple(rollouts))

    async def load_weights(self, publication: Publication) -> SyncReceipt:
        manifest = publication.manifest
        if self._draw.random() < self._scenario.dies_loading:
            self._later(0.3, self.die)
        with _Counted(self._calls, "loading"):
            await self._work(self._draw.uniform(0.05, 1.0), self._now() + self._rollout.sync_timeout_s, "new weights")
        if self._draw.random() < self._scenario.broken_memory:
            self._note("worker refused weights")
            raise CanaryMismatch(f"worker {self._number} has a bit that flips")
        if TORN in manifest.checksums:
            raise ChecksumMismatch(f"bucket 0 of version {manifest.version} is not what was published")
        self._version = manifest.version
        return SyncReceipt(
            worker=self._number,
            version=manifest.version,
            generation=manifest.generation,
            canary_error=0.0,
            fetch_s=0.0,
            load_s=0.0,
            verify_s=0.0,
        )

    async def health(self) -> int:
        with _Counted(self._calls, "probing"):
            await self._work(0.05, self._now() + self._rollout.health_timeout_s, "one token")
        return self._version

    async def stop(self) -> None:
        """Ending a process takes its time, in which it may thaw, and answer."""
        await asyncio.sleep(self._draw.choice((0.0, 0.1, 10.0)))
        self._end()

    def _end(self) -> None:
        self._is_dead = True
        for timer in self._timers:
            timer.cancel()
        self._wake()

    def _freeze(self) -> None:
        self._is_frozen = True
        self._note("worker froze")
        self._wake()
        self._timers.append(
            asyncio.get_running_loop().call_later(self._scenario.frozen_s * self._draw.betavariate(4, 1), self._thaw)
        )

    def _thaw(self) -> None:
        self._is_frozen = False
        self._note("worker thawed")
        self._wake()
        self._later(self._scenario.awake_s, self._freeze)

    async def _work(self, seconds: float, deadline: float, what: str) -> None:
        """Be busy for so long, not counting the time in which the worker is frozen."""
        started = self._now()
        while True:
            if self._is_dead:
                raise WorkerLost(f"the process of rollout worker {self._number} is gone")
            left_s = deadline - self._now()
            if left_s <= 0:
                self._note(f"deadline of {what}")
                raise DeadlineExceeded(waited_for=what, waited_s=self._now() - started, advice="look at the worker")
            if seconds <= 0 and not self._is_frozen:
                return
            before, was_frozen = self._now(), self._is_frozen
            await self._wait(left_s if was_frozen else min(seconds, left_s))
            seconds -= 0.0 if was_frozen else self._now() - before + 1e-9

    async def _wait(self, seconds: float) -> None:
        """Until this time has passed or the worker has changed."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds + 1e-9, _set, future)
        self._waits.add(future)
        try:
            await future
        finally:
            timer.cancel()
            self._waits.discard(future)

    def _wake(self) -> None:
        for future in self._waits:
            _set(future)

    def _later(self, mean_s: float, happens: Callable[[], None]) -> None:
        if mean_s:
            seconds = self._draw.expovariate(1 / mean_s)
            self._timers.append(asyncio.get_running_loop().call_later(seconds, happens))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


class SimulatedLauncher:
    """Implements `Launcher`."""

    def __init__(self, scenario: Scenario, rollout: RolloutConfig, *, seed: str, note: Note) -> None:
        self._scenario = scenario
        self._rollout = rollout
        self._seed = seed
        self._note = note
        self.workers: list[SimulatedWorker] = []

    async def launch(self, number: int) -> SimulatedWorker:
        draw = random.Random(f"{self._seed}/worker {number}")
        await asyncio.sleep(draw.uniform(0.5, 8.0))
        is_first = number < self._scenario.num_workers  # Of these, none may fail.
        no_launch = self._scenario.no_launch * (0.1 if is_first else 1.0)
        if draw.random() < no_launch:
            self._note("launch failed")
            raise WorkerLost(f"rollout worker {number} ran out of memory while it loaded the model")
        if draw.random() < no_launch / 4:
            self._note("no room")
            raise UserError(f"the cluster has no room for rollout worker {number}")
        worker = SimulatedWorker(number, self._scenario, self._rollout, draw, self._note)
        self.workers.append(worker)
        return worker


class _Counted:
    """Counts a call while it goes on."""

    def __init__(self, calls: dict[str, int], name: str) -> None:
        self._calls = calls
        self._name = name

    def __enter__(self) -> None:
        self._calls[self._name] += 1

    def __exit__(self, *_: object) -> None:
        self._calls[self._name] -= 1


def _rollout(request: SampleRequest, index: int, versions: list[int]) -> Rollout:
    tokens = [token(request.prompt, request.sampling.seed, index, version) for version in versions]
    rollout = make_rollout(request.prompt, sample_index=index, completion_ids=tokens)
    rollout.policy_versions[rollout.num_prompt_tokens :] = type(rollout.policy_versions)("i", versions)
    return rollout


def token(prompt: Prompt, seed: int, index: int, version: int) -> int:
    return sampling_seed(run_seed=seed, prompt_id=prompt.id, sample_index=index, policy_version=version) % 97


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
