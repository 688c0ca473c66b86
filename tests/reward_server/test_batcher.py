"""Batches over many requests: full or due, bounded, and never for a caller who left."""

import asyncio
from collections.abc import Sequence

import pytest

from reward_server.batcher import Batcher, Overloaded
from services.contracts.records import Failure, Reward, RewardDescription, RewardSample
from tests.reward_server.serving import make_sample, make_samples, until


class RecordingScorer:
    """Remembers the batches it was given, and scores them once the gate is open."""

    description = RewardDescription(name="recording")
    batched = True

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def score(self, samples: Sequence[RewardSample]) -> Sequence[Reward | Failure]:
        self.batches.append([sample.completion for sample in samples])
        await self.gate.wait()
        return [Reward(value=float(sample.completion)) for sample in samples]


def batcher(scorer: RecordingScorer, **limits: object) -> Batcher:
    settings = {"max_batch_cost": 8, "max_wait_s": 0.01, "max_pending_samples": 100, "max_running": 1} | limits
    return Batcher(scorer, **settings)  # type: ignore[arg-type]  # a mapping of several types


async def test_requests_share_a_batch_and_each_gets_its_own_outcomes() -> None:
    scorer = RecordingScorer()
    shared = batcher(scorer)

    outcomes = await asyncio.gather(*(shared.submit([make_sample(completion=str(value))]) for value in range(5)))

    assert scorer.batches == [["0", "1", "2", "3", "4"]]
    assert outcomes == [[Reward(value=float(value))] for value in range(5)]


async def test_a_full_batch_starts_without_waiting() -> None:
    scorer = RecordingScorer()

    await asyncio.wait_for(batcher(scorer, max_wait_s=1000.0).submit(make_samples(8)), 5.0)

    assert len(scorer.batches) == 1


async def test_a_lone_sample_waits_no_longer_than_allowed() -> None:
    scorer = RecordingScorer()

    await asyncio.wait_for(batcher(scorer, max_wait_s=0.02).submit(make_samples(1)), 5.0)

    assert scorer.batches == [["0"]]


async def test_a_large_request_is_cut_into_batches() -> None:
    scorer = RecordingScorer()

    outcomes = await batcher(scorer).submit(make_samples(20))

    assert [len(batch) for batch in scorer.batches] == [8, 8, 4]
    assert outcomes == [Reward(value=float(index)) for index in range(20)]


async def test_samples_gather_while_the_scorer_is_busy() -> None:
    scorer = RecordingScorer()
    scorer.gate.clear()
    shared = batcher(scorer, max_wait_s=0.0)
    first = asyncio.create_task(shared.submit(make_samples(1)))
    await until(lambda: len(scorer.batches) == 1)
    later = [asyncio.create_task(shared.submit([make_sample(completion=str(value))])) for value in range(5)]
    await asyncio.sleep(0)
    scorer.gate.set()
    await asyncio.gather(first, *later)

    assert [len(batch) for batch in scorer.batches] == [1, 5]


async def test_more_than_the_bound_is_refused_and_room_returns() -> None:
    scorer = RecordingScorer()
    scorer.gate.clear()
    bounded = batcher(scorer, max_pending_samples=3)
    accepted = asyncio.create_task(bounded.submit(make_samples(3)))
    await until(lambda: len(scorer.batches) == 1)

    with pytest.raises(Overloaded, match=r"3 samples are pending and 1 more would exceed max_pending_samples \(3\)"):
        await bounded.submit(make_samples(1))

    scorer.gate.set()
    await accepted
    assert len(await bounded.submit(make_samples(3))) == 3


async def test_a_caller_who_left_is_not_scored() -> None:
    scorer = RecordingScorer()
    scorer.gate.clear()
    shared = batcher(scorer, max_pending_samples=2)
    running = asyncio.create_task(shared.submit([make_sample(completion="0")]))
    await until(lambda: len(scorer.batches) == 1)
    leaving = asyncio.create_task(shared.submit([make_sample(completion="1")]))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    staying = asyncio.create_task(shared.submit([make_sample(completion="2")]))
    await asyncio.sleep(0)
    scorer.gate.set()
    await asyncio.gather(running, staying)

    assert scorer.batches == [["0"], ["2"]]


async def test_a_batch_costs_its_number_times_the_largest_cost_and_like_goes_with_like() -> None:
    scorer = RecordingScorer()
    by_size = batcher(scorer, max_batch_cost=12, cost=lambda sample: int(sample.completion), window=8)

    outcomes = await by_size.submit([make_sample(completion=str(cost)) for cost in (5, 1, 6, 40, 1, 2, 5)])

    assert scorer.batches == [["1", "1", "2"], ["5", "5"], ["6"], ["40"]]
    assert [outcome.value for outcome in outcomes if isinstance(outcome, Reward)] == [5, 1, 6, 40, 1, 2, 5]


async def test_a_costly_sample_waits_for_one_window_of_cheaper_ones_at_most() -> None:
    scorer = RecordingScorer()
    scorer.gate.clear()
    by_size = batcher(scorer, max_batch_cost=4, cost=lambda sample: int(sample.completion), window=2)
    first = asyncio.create_task(by_size.submit([make_sample(completion="4")]))
    await until(lambda: len(scorer.batches) == 1)
    costly = asyncio.create_task(by_size.submit([make_sample(completion="4")]))
    cheap = [asyncio.create_task(by_size.submit([make_sample(completion="1")])) for _ in range(9)]
    await asyncio.sleep(0)
    scorer.gate.set()
    await asyncio.gather(first, costly, *cheap)

    assert scorer.batches == [["4"], ["1"] * 4, ["4"], ["1"] * 4, ["1"]]
