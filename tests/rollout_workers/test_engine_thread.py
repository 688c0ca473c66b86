"""The engine's thread, with an engine that samples without a model."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from typing import Any

import pytest

from rollout_workers.engine_thread import EngineThread
from services.contracts.errors import CanaryMismatch, UserError, WorkerLost
from services.contracts.records import Canary, SampleRequest, Sampling, WeightManifest
from tests.fakes import make_prompt

CANARY = Canary(sequences=(), logprobs=(), tolerance=1.0)
MANIFEST = WeightManifest(version=4, tensors=(), bucket_bytes=(), checksums=(), canary=CANARY)


@dataclass(frozen=True)
class FakeCompletion:
    order: str
    seed: int


@dataclass
class FakeEngine:
    """Ends an order at each step, the last first, while `gate` is open. Notes which thread it was called from."""

    gate: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    load_error: Exception | None = None
    version: int = 3
    orders: dict[str, int] = field(default_factory=dict)
    threads: set[int] = field(default_factory=set)
    closed: bool = False

    @property
    def busy(self) -> bool:
        self.threads.add(threading.get_ident())
        return bool(self.orders)

    def add(self, order: str, token_ids: Sequence[int], sampling: Sampling, *, seed: int) -> None:
        if sampling.max_completion_tokens == 0:
            raise UserError("no room")
        self.orders[order] = seed

    def abort(self, orders: Sequence[str]) -> None:
        for order in orders:
            self.orders.pop(order, None)

    def step(self) -> list[FakeCompletion]:
        if self.error is not None:
            raise self.error
        if not self.gate.wait(0.01):
            return []
        return [FakeCompletion(*self.orders.popitem())]

    def load(self, manifest: WeightManifest, buckets: Sequence[memoryview]) -> str:
        if self.load_error is not None:
            self.orders.clear()
            raise self.load_error
        return f"version {manifest.version}"

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def thread(engine: FakeEngine) -> Iterator[EngineThread]:
    thread = EngineThread(lambda: engine, name="rollout worker 7")  # type: ignore[arg-type, return-value]
    thread.ready.result(timeout=10)
    yield thread
    thread.close(timeout_s=10)


def request(num_samples: int = 3, max_completion_tokens: int = 4) -> SampleRequest:
    sampling = Sampling(num_samples=num_samples, max_completion_tokens=max_completion_tokens)
    return SampleRequest(prompt=make_prompt(0), sampling=sampling)


def until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_group_comes_in_the_order_of_its_samples_whichever_ends_first(
    thread: EngineThread, engine: FakeEngine
) -> None:
    engine.gate.set()

    completions: Any = thread.sample(request()).result(timeout=10)

    assert [completion.order.split("/")[1] for completion in completions] == ["0", "1", "2"]
    assert len({completion.seed for completion in completions}) == 3


def test_a_repeated_order_has_the_same_seeds_and_another_version_others(
    thread: EngineThread, engine: FakeEngine
) -> None:
    engine.gate.set()
    first, second = (thread.sample(request()).result(timeout=10) for _ in range(2))
    engine.version = 4
    third = thread.sample(request()).result(timeout=10)

    seeds = [[completion.seed for completion in group] for group in (first, second, third)]  # type: ignore[attr-defined]
    assert seeds[0] == seeds[1]
    assert not set(seeds[0]) & set(seeds[2])


def test_the_engine_is_touched_by_one_thread_alone(thread: EngineThread, engine: FakeEngine) -> None:
    engine.gate.set()

    wait([thread.sample(request()) for _ in range(5)], timeout=10)

    assert len(engine.threads) == 1
    assert threading.get_ident() not in engine.threads


def test_weights_load_while_completions_are_under_way(thread: EngineThread, engine: FakeEngine) -> None:
    group = thread.sample(request())
    until(lambda: engine.orders)

    assert thread.load(MANIFEST, []).result(timeout=10) == "version 4"  # type: ignore[comparison-overlap]

    assert not group.done()
    engine.gate.set()
    assert len(group.result(timeout=10)) == 3


def test_a_cancelled_group_is_sampled_no_more(thread: EngineThread, engine: FakeEngine) -> None:
    cancelled, kept = thread.sample(request()), thread.sample(request())
    until(lambda: len(engine.orders) == 6)

    cancelled.cancel()
    until(lambda: len(engine.orders) == 3)

    engine.gate.set()
    assert len(kept.result(timeout=10)) == 3


def test_a_refused_order_fails_alone(thread: EngineThread, engine: FakeEngine) -> None:
    engine.gate.set()

    with pytest.raises(UserError, match="no room"):
        thread.sample(request(max_completion_tokens=0)).result(timeout=10)

    assert len(thread.sample(request()).result(timeout=10)) == 3


def test_a_failed_load_ends_the_groups_under_way_and_later_ones_are_taken(
    thread: EngineThread, engine: FakeEngine
) -> None:
    group = thread.sample(request())
    until(lambda: engine.orders)
    engine.load_error = CanaryMismatch("stale head")
    load = thread.load(MANIFEST, [])

    with pytest.raises(CanaryMismatch):
        load.result(timeout=10)
    with pytest.raises(CanaryMismatch):
        group.result(timeout=10)
    engine.gate.set()
    assert len(thread.sample(request()).result(timeout=10)) == 3


def test_a_failing_engine_fails_every_waiting_call_and_each_later_one(thread: EngineThread, engine: FakeEngine) -> None:
    groups = [thread.sample(request()) for _ in range(3)]
    engine.error = RuntimeError("out of memory")

    for group in groups:
        with pytest.raises(WorkerLost, match=r"engine of rollout worker 7 failed: RuntimeError\('out of memory'\)"):
            group.result(timeout=10)
    with pytest.raises(WorkerLost, match="out of memory"):
        thread.sample(request()).result(timeout=10)
    until(lambda: engine.closed)


def test_closing_ends_what_waits_and_frees_the_engine(thread: EngineThread, engine: FakeEngine) -> None:
    group = thread.sample(request())
    until(lambda: engine.orders)

    thread.close(timeout_s=10)

    with pytest.raises(WorkerLost, match="rollout worker 7 was closed"):
        group.result(timeout=10)
    assert engine.closed


def test_an_engine_that_cannot_be_built_says_why() -> None:
    def build() -> Any:
        raise UserError("no such model")

    thread = EngineThread(build, name="rollout worker 7")

    with pytest.raises(UserError, match="no such model"):
        thread.ready.result(timeout=10)
    with pytest.raises(WorkerLost, match="did not start"):
        thread.sample(request()).result(timeout=10)
