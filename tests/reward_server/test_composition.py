"""Weighted sums of rewards: values, components, ranges and failures, worked by hand."""

from collections.abc import Sequence

import pytest

from reward_server.composition import WeightedPart, WeightedScorer
from reward_server.function import RewardFunction
from reward_server.scorer import FunctionScorer
from services.contracts.errors import UserError
from services.contracts.records import Failure, FailureCode, Reward, RewardSample, StepReward
from tests.reward_server.serving import make_sample


def part(name: str, returned: object, weight: float = 1.0, **says: object) -> WeightedPart:
    function = RewardFunction(lambda sample: returned, name=name, **says)  # type: ignore[arg-type]
    return WeightedPart(scorer=FunctionScorer(function, timeout_s=5.0, num_threads=1), weight=weight)


async def score(*parts: WeightedPart, samples: Sequence[RewardSample] = (make_sample(),)) -> Reward | Failure:
    (outcome,) = await WeightedScorer(parts).score(samples)
    return outcome


async def test_the_value_is_the_weighted_sum_and_components_are_the_raw_parts() -> None:
    outcome = await score(part("right", 1.0, 2.0), part("short", -0.5, 0.5))
    assert outcome == Reward(value=1.75, components={"right": 1.0, "short": -0.5})


async def test_components_and_steps_of_a_part_are_kept() -> None:
    rich = Reward(value=1.0, components={"detail": 3.0}, steps=(StepReward(start=0, end=1, value=2.0),))
    outcome = await score(part("rich", rich, 0.5))
    assert outcome == Reward(
        value=0.5, components={"rich": 1.0, "rich/detail": 3.0}, steps=(StepReward(start=0, end=1, value=1.0),)
    )


async def test_a_total_has_the_version_of_each_part_that_changes() -> None:
    outcome = await score(part("right", 1.0), part("model", Reward(value=0.5, version="b")))
    assert isinstance(outcome, Reward) and outcome.version == "model@b"


async def test_a_failing_part_fails_the_sample_and_is_named() -> None:
    failure = Failure(code=FailureCode.TIMEOUT, message="too slow", retryable=True)
    outcome = await score(part("right", 1.0), part("judge", failure))
    assert outcome == Failure(code=FailureCode.TIMEOUT, message="judge: too slow", retryable=True)


async def test_a_part_that_failed_for_good_decides() -> None:
    passing = Failure(code=FailureCode.TIMEOUT, message="too slow", retryable=True)
    lasting = Failure(code=FailureCode.INVALID_SAMPLE, message="no reference")
    outcome = await score(part("judge", passing), part("right", lasting))
    assert isinstance(outcome, Failure)
    assert outcome.code is FailureCode.INVALID_SAMPLE and not outcome.retryable


async def test_a_sum_that_overflows_is_a_failure() -> None:
    outcome = await score(part("a", 1e308), part("b", 1e308))
    assert isinstance(outcome, Failure) and "not finite" in outcome.message


def test_the_description_adds_up_ranges_and_needs() -> None:
    total = WeightedScorer(
        [
            part("right", 1.0, 2.0, minimum=0.0, maximum=1.0, version="3"),
            part("long", 0.0, -0.5, minimum=0.0, maximum=4.0, needs_token_ids=True),
        ]
    )
    assert total.description.name == "right_long"
    assert total.description.version == "2*right@3+-0.5*long@0"
    assert (total.description.minimum, total.description.maximum) == (-2.0, 2.0)
    assert total.description.needs_token_ids


def test_an_unbounded_part_leaves_the_total_unbounded() -> None:
    total = WeightedScorer([part("right", 1.0, minimum=0.0, maximum=1.0), part("free", 1.0, minimum=0.0)])
    assert (total.description.minimum, total.description.maximum) == (0.0, None)


async def test_awkward_weights_stay_within_the_declared_range() -> None:
    parts = [part(f"p{n}", 1.0, weight, minimum=0.0, maximum=1.0) for n, weight in enumerate((0.1, 0.2, 0.3, 0.7))]
    assert isinstance(await score(*parts), Reward)


def test_two_parts_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="two rewards are named right"):
        WeightedScorer([part("right", 1.0), part("right", 0.0)])
