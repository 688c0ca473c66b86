"""Ensembles: the three aggregates by hand, members that fail, and ranges that hold for any numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_server.ensemble import EnsembleScorer
from reward_server.part_config import EnsembleConfig, RewardSource
from reward_server.parts import Part
from services.contracts.records import Failure, FailureCode, Reward, StepReward
from services.transport.reward_validation import fault_in_reward
from tests.reward_server.composing import LATE, part
from tests.reward_server.serving import make_sample
from tests.simulation.virtual_time import VirtualTimeLoop

BOUNDED = {"minimum": -1.0, "maximum": 3.0}


def ensemble(*members: Part, **settings: object) -> EnsembleScorer:
    any_two = (RewardSource(name="a"), RewardSource(name="b"))
    return EnsembleScorer("helpful", members, EnsembleConfig(members=any_two, **settings))  # type: ignore[arg-type]


async def score(scorer: EnsembleScorer) -> Reward | Failure:
    (outcome,) = await scorer.score([make_sample()])
    return outcome


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        # Of 1, 2 and 3: mean 2, variance (1 + 0 + 1) / 3.
        ({"aggregate": "mean"}, 2.0),
        ({"aggregate": "minimum"}, 1.0),
        ({"aggregate": "mean_minus_std", "penalty": 1.5}, 2.0 - 1.5 * math.sqrt(2 / 3)),
        ({"aggregate": "mean_minus_std", "penalty": 0.0}, 2.0),
    ],
)
async def test_aggregates_by_hand(settings: dict[str, object], value: float) -> None:
    outcome = await score(ensemble(part("a", 1.0), part("b", 2.0), part("c", 3.0), **settings))
    assert isinstance(outcome, Reward)
    assert outcome.value == pytest.approx(value)
    assert outcome.components == {"a": 1.0, "b": 2.0, "c": 3.0, "std": pytest.approx(math.sqrt(2 / 3))}


async def test_only_a_mean_has_steps_which_are_averaged() -> None:
    stepped = Reward(value=1.0, steps=(StepReward(start=0, end=1, value=4.0),))
    mean = await score(ensemble(part("a", stepped), part("b", 1.0)))
    least = await score(ensemble(part("a", stepped), part("b", 1.0), aggregate="minimum"))
    assert isinstance(mean, Reward) and isinstance(least, Reward)
    assert (mean.steps, least.steps) == ((StepReward(start=0, end=1, value=2.0),), ())


async def test_a_member_that_fails_fails_the_ensemble() -> None:
    outcome = await score(ensemble(part("a", 1.0), part("b", LATE)))
    assert outcome == Failure(code=FailureCode.TIMEOUT, message="b: too slow", retryable=True)


async def test_a_member_that_may_be_skipped_leaves_the_others_and_a_mark() -> None:
    outcome = await score(ensemble(part("a", 1.0), part("b", LATE, on_failure="skip_part"), part("c", 2.0)))
    assert outcome == Reward(value=1.5, components={"a": 1.0, "b/skipped": 1.0, "c": 2.0, "std": 0.5})


async def test_nothing_is_made_up_when_every_member_is_skipped() -> None:
    members = [part(name, LATE, on_failure="skip_part") for name in "ab"]
    assert isinstance(await score(ensemble(*members)), Failure)


@pytest.mark.parametrize(
    ("settings", "bounds"),
    [
        ({"aggregate": "mean"}, (-0.5, 2.0)),
        ({"aggregate": "minimum"}, (-1.0, 1.0)),
        # The least conceivable: -1 less half the distance of 4 between the outermost bounds.
        ({"aggregate": "mean_minus_std"}, (-3.0, 2.0)),
    ],
)
def test_ranges_by_hand(settings: dict[str, object], bounds: tuple[float, float]) -> None:
    narrow = part("narrow", 0.0, minimum=0.0, maximum=1.0)
    description = ensemble(part("wide", 0.0, **BOUNDED), narrow, **settings).description
    assert (description.minimum, description.maximum) == bounds


@given(
    st.lists(st.tuples(st.floats(-1, 3), st.sampled_from(["scored", "optional", "skipped"])), min_size=2, max_size=5),
    st.sampled_from(["mean", "minimum", "mean_minus_std"]),
    st.floats(0, 4),
)
def test_no_value_leaves_the_declared_range(rows: list[tuple[float, str]], aggregate: str, penalty: float) -> None:
    members = [
        part(
            f"m{n}",
            LATE if what == "skipped" else value,
            on_failure="retry" if what == "scored" else "skip_part",
            **BOUNDED,
        )
        for n, (value, what) in enumerate(rows)
    ]
    scorer = ensemble(*members, aggregate=aggregate, penalty=penalty)

    async def story() -> None:
        outcome = await score(scorer)
        if isinstance(outcome, Reward):
            assert fault_in_reward(outcome, description=scorer.description, completion="7") is None
        else:
            assert all(what == "skipped" for _, what in rows)

    VirtualTimeLoop().run(story())
