"""Scoring with a user's function: every way it can go wrong is a typed failure of the right sample."""

import asyncio
import functools
import math
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from reward_server.function import RewardFunction
from reward_server.scorer import ABANDONED_PER_THREAD, FunctionScorer
from services.contracts.errors import UserError
from services.contracts.records import Failure, FailureCode, Reward, RewardSample, StepReward
from tests.reward_server.serving import completion_as_number, make_sample, make_samples, until


def scorer(
    score: Callable[..., object], *, timeout_s: float = 10.0, num_threads: int = 4, **says: object
) -> FunctionScorer:
    function = RewardFunction(score, **says)  # type: ignore[arg-type]  # wrong return types are the point
    return FunctionScorer(function, timeout_s=timeout_s, num_threads=num_threads)


async def one(score: Callable[..., object], **says: object) -> Reward | Failure:
    (outcome,) = await scorer(score, **says).score([make_sample()])
    return outcome


async def test_outcomes_keep_the_order_of_the_samples() -> None:
    outcomes = await scorer(completion_as_number).score(make_samples(50))
    assert outcomes == [Reward(value=float(index)) for index in range(50)]


async def async_number(sample: RewardSample) -> float:
    await asyncio.sleep(0)
    return float(sample.completion)


def batch_of_numbers(samples: Sequence[RewardSample]) -> list[float]:
    return [float(sample.completion) for sample in samples]


async def async_batch_of_numbers(samples: Sequence[RewardSample]) -> list[float]:
    return batch_of_numbers(samples)


class CallableReward:
    async def __call__(self, sample: RewardSample) -> float:
        return float(sample.completion)


@pytest.mark.parametrize(
    ("score", "batched"),
    [
        (completion_as_number, False),
        (async_number, False),
        (functools.partial(async_number), False),
        (CallableReward(), False),
        (lambda sample: float(sample.completion), False),
        (batch_of_numbers, True),
        (async_batch_of_numbers, True),
    ],
)
async def test_every_shape_of_function_scores(score: Callable[..., object], batched: bool) -> None:
    outcomes = await scorer(score, batched=batched).score(make_samples(3))
    assert outcomes == [Reward(value=0.0), Reward(value=1.0), Reward(value=2.0)]


async def test_a_function_may_return_a_reward_or_a_failure_itself() -> None:
    reward = Reward(value=0.5, components={"a": 2.0}, steps=(StepReward(start=0, end=1, value=1.0),))
    failure = Failure(code=FailureCode.UNAVAILABLE, message="the judge is down", retryable=True)

    assert await one(lambda sample: reward) == reward
    assert await one(lambda sample: failure) == failure
    assert await one(lambda sample: True) == Reward(value=1.0)


def divide_by_zero(sample: RewardSample) -> float:
    return 1 / 0


async def async_divide_by_zero(sample: RewardSample) -> float:
    return 1 / 0


@pytest.mark.parametrize("score", [divide_by_zero, async_divide_by_zero, lambda sample: sys.exit("gone")])
async def test_an_exception_becomes_a_failure_with_its_text(score: Callable[..., object]) -> None:
    outcome = await one(score)
    assert isinstance(outcome, Failure)
    assert outcome.code is FailureCode.INTERNAL and not outcome.retryable
    assert "ZeroDivisionError: division by zero" in outcome.message or "SystemExit: gone" in outcome.message


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 1.5, -0.1, None, "1.0", [1.0], Reward(value=math.nan)]
)
async def test_what_is_no_number_in_range_becomes_a_failure(value: object) -> None:
    outcome = await one(lambda sample: value, minimum=0.0, maximum=1.0)
    assert isinstance(outcome, Failure) and outcome.code is FailureCode.INTERNAL


async def test_only_the_sample_that_fails_is_failed() -> None:
    outcomes = await scorer(lambda sample: 1 / float(sample.completion)).score(make_samples(3))
    assert [type(outcome) for outcome in outcomes] == [Failure, Reward, Reward]


async def test_one_bad_sample_does_not_fail_its_batch() -> None:
    def score(samples: Sequence[RewardSample]) -> list[float]:
        return [1 / float(sample.completion) for sample in samples]

    outcomes = await scorer(score, batched=True).score(make_samples(3))
    assert [type(outcome) for outcome in outcomes] == [Failure, Reward, Reward]


@pytest.mark.parametrize("returned", [[1.0], [1.0] * 4, 1.0, None])
async def test_a_batch_with_a_wrong_number_of_scores_fails_whole(returned: object) -> None:
    outcomes = await scorer(lambda samples: returned, batched=True).score(make_samples(3))
    assert all(isinstance(outcome, Failure) and "for 3 samples" in outcome.message for outcome in outcomes)


async def test_a_function_that_hangs_becomes_a_timeout_and_blocks_nobody() -> None:
    release = threading.Event()

    def hang_on_zero(sample: RewardSample) -> float:
        if sample.completion == "0":
            release.wait()
        return float(sample.completion)

    under_test = scorer(hang_on_zero, timeout_s=0.2, num_threads=2)
    first, second = await under_test.score(make_samples(2))
    release.set()

    assert isinstance(first, Failure) and first.code is FailureCode.TIMEOUT and first.retryable
    assert "0.2 s" in first.message
    assert second == Reward(value=1.0)


async def test_one_thread_is_one_call_at_a_time_also_after_a_timeout() -> None:
    release, alone = threading.Event(), threading.Lock()

    def score(sample: RewardSample) -> float:
        assert alone.acquire(blocking=False), "called while another call was under way"
        if sample.completion == "0":
            release.wait()
        alone.release()
        return 1.0

    under_test = scorer(score, timeout_s=0.5, num_threads=1)
    earlier = set(threading.enumerate())
    hung, refused = await under_test.score(make_samples(2))
    ours = set(threading.enumerate()) - earlier
    release.set()
    await until(lambda: not any(thread.is_alive() for thread in ours))
    waited = await under_test.score(make_samples(2))

    assert isinstance(hung, Failure) and hung.code is FailureCode.TIMEOUT
    assert isinstance(refused, Failure) and refused.code is FailureCode.UNAVAILABLE and refused.retryable
    assert waited == [Reward(value=1.0)] * 2


async def test_a_late_call_in_the_only_thread_is_waited_for() -> None:
    release = threading.Event()

    def score(sample: RewardSample) -> float:
        if sample.completion == "0":
            release.wait()
        return 1.0

    under_test = scorer(score, timeout_s=1.0, num_threads=1)
    (late,) = await under_test.score([make_sample(completion="0")])
    asyncio.get_running_loop().call_later(0.1, release.set)

    assert isinstance(late, Failure) and late.code is FailureCode.TIMEOUT
    assert await under_test.score([make_sample(completion="1")]) == [Reward(value=1.0)]


async def test_a_call_that_returns_in_the_moment_of_its_timeout_is_not_waited_for() -> None:
    loop = asyncio.get_running_loop()

    def score(sample: RewardSample) -> float:
        if sample.completion == "0":
            time.sleep(0.15)
            # Comes before the answer, and the timeout while it holds the event loop.
            loop.call_soon_threadsafe(time.sleep, 0.2)
        return 1.0

    under_test = scorer(score, timeout_s=0.2, num_threads=1)
    await under_test.score([make_sample(completion="0")])
    assert await under_test.score([make_sample(completion="1")]) == [Reward(value=1.0)]


async def test_an_async_function_that_hangs_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def hang(sample: RewardSample) -> float:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return 0.0

    outcome = await scorer(hang, timeout_s=0.05).score([make_sample()])

    assert isinstance(outcome[0], Failure) and outcome[0].code is FailureCode.TIMEOUT
    assert cancelled.is_set()


async def test_threads_that_never_return_are_bounded_and_forgotten_when_they_do() -> None:
    release = threading.Event()

    def hang(sample: RewardSample) -> float:
        release.wait()
        return 1.0

    earlier = set(threading.enumerate())
    under_test = scorer(hang, timeout_s=0.05, num_threads=2)
    outcomes = await under_test.score(make_samples(2 * ABANDONED_PER_THREAD + 6))
    ours = set(threading.enumerate()) - earlier
    stuck = len(ours)
    release.set()
    await until(lambda: not any(thread.is_alive() for thread in ours))

    codes = [outcome.code for outcome in outcomes if isinstance(outcome, Failure)]
    assert codes.count(FailureCode.TIMEOUT) <= 2 * ABANDONED_PER_THREAD + 1
    assert codes.count(FailureCode.UNAVAILABLE) >= 5
    assert stuck <= 2 * ABANDONED_PER_THREAD + 1
    assert await under_test.score([make_sample()]) == [Reward(value=1.0)]


async def test_no_more_calls_run_at_once_than_threads() -> None:
    lock = threading.Lock()
    running = most = 0

    def count(sample: RewardSample) -> float:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        for _ in range(2000):
            pass
        with lock:
            running -= 1
        return 0.0

    await scorer(count, num_threads=2).score(make_samples(40))
    assert most <= 2


async def test_a_thread_keeps_its_place_when_its_caller_leaves() -> None:
    release, begun = threading.Event(), threading.Event()
    scored: list[str] = []

    def score(sample: RewardSample) -> float:
        begun.set()
        release.wait()
        scored.append(sample.completion)
        return 1.0

    under_test = scorer(score, num_threads=1)
    leaving = asyncio.create_task(under_test.score(make_samples(3)))
    await until(begun.is_set)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    staying = asyncio.create_task(under_test.score([make_sample(completion="next")]))
    await asyncio.sleep(0)
    assert not staying.done()
    release.set()

    assert await staying == [Reward(value=1.0)]
    assert scored == ["0", "next"]  # What had not begun is not scored at all.


async def test_an_async_function_that_never_waits_is_scored_in_the_task_of_its_caller() -> None:
    tasks: set[object] = set()

    async def score(sample: RewardSample) -> float:
        tasks.add(asyncio.current_task())
        return 0.0

    await scorer(score).score(make_samples(8))
    assert tasks == {asyncio.current_task()}


@pytest.mark.parametrize("says", [{"name": "no good"}, {"minimum": 1.0, "maximum": 0.0}])
def test_a_function_cannot_describe_itself_wrongly(says: dict[str, object]) -> None:
    with pytest.raises(UserError):
        RewardFunction(completion_as_number, **says)  # type: ignore[arg-type]  # as above


def test_a_function_is_named_after_itself() -> None:
    assert RewardFunction(completion_as_number).description.name == "completion_as_number"
    assert RewardFunction(lambda sample: 0.0).description.name == "lambda"
    assert RewardFunction(CallableReward()).description.name == "CallableReward"


async def test_what_a_reward_opens_is_open_while_it_scores_and_closed_in_the_end() -> None:
    told: list[str] = []

    @asynccontextmanager
    async def opened() -> AsyncIterator[None]:
        told.append("open")
        yield
        told.append("closed")

    async def score(sample: RewardSample) -> float:
        told.append(sample.completion)
        return 1.0

    opening = scorer(score, opened=opened)
    await opening.start()
    await opening.score([make_sample(completion="scored")])
    await opening.close()
    assert told == ["open", "scored", "closed"]
