"""Composed rewards: sums, gates, routes and failures, worked by hand, and laws that hold for any numbers."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_server.composition import CompositeScorer
from reward_server.part_config import GateConfig
from reward_server.parts import Part
from reward_server.shaping import Shaping
from services.contracts.errors import UserError
from services.contracts.records import Failure, FailureCode, Reward, RewardSample, StepReward
from services.transport.reward_validation import fault_in_reward
from tests.reward_server.composing import BROKEN, LATE, asked, part
from tests.reward_server.serving import completion_as_number, make_sample, make_samples
from tests.simulation.virtual_time import VirtualTimeLoop

WEIGHTS = st.floats(-10, 10, allow_subnormal=False).filter(lambda weight: weight == 0 or abs(weight) > 1e-6)
VALUES = st.floats(0, 1)


async def score(*parts: Part, samples: Sequence[RewardSample] = (make_sample(),)) -> Reward | Failure:
    (outcome,) = await CompositeScorer(parts).score(samples)
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


async def test_a_sample_that_a_part_was_not_asked_about_has_the_version_of_its_neighbours() -> None:
    form = part("form", completion_as_number, 0.0, gate=GateConfig(at_least=1.0, otherwise=0.0))
    total = CompositeScorer([form, part("model", Reward(value=0.5, version="b"))])
    closed, opened = await total.score(make_samples(2))
    (alone,) = await total.score(make_samples(1))
    assert [outcome.version for outcome in (closed, opened, alone) if isinstance(outcome, Reward)] == ["model@b"] * 3


async def test_steps_of_several_parts_become_one_list_that_keeps_each_value_where_it_was() -> None:
    fine = Reward(value=0.0, steps=(StepReward(start=0, end=2, value=1.0), StepReward(start=2, end=4, value=2.0)))
    coarse = Reward(value=0.0, steps=(StepReward(start=1, end=3, value=8.0), StepReward(start=3, end=4, value=4.0)))
    sample = make_sample(completion="abcd")
    outcome = await score(part("fine", fine), part("coarse", coarse, 0.5), samples=[sample])
    assert isinstance(outcome, Reward)
    assert outcome.steps == (
        StepReward(start=0, end=2, value=1.0),
        StepReward(start=2, end=3, value=4.0),
        StepReward(start=3, end=4, value=4.0),
    )


async def test_a_failing_part_fails_the_sample_and_is_named() -> None:
    outcome = await score(part("right", 1.0), part("judge", LATE))
    assert outcome == Failure(code=FailureCode.TIMEOUT, message="judge: too slow", retryable=True)


async def test_a_part_that_failed_for_good_decides() -> None:
    quick, slow = part("judge", LATE), part("right", BROKEN)
    outcome = await score(quick, slow)
    assert outcome == Failure(code=FailureCode.INTERNAL, message="right: broken")
    assert asked(slow) == asked(quick), "what is asked does not depend on who answers first"


async def test_a_part_may_forbid_to_ask_again() -> None:
    outcome = await score(part("judge", LATE, on_failure="fail"))
    assert isinstance(outcome, Failure) and not outcome.retryable


async def test_a_part_that_may_be_skipped_leaves_its_weight_to_the_others_and_a_mark() -> None:
    parts = [part("right", 0.5, 3.0), part("judge", LATE, 1.0, on_failure="skip_part")]
    # 3 · 0.5 = 1.5 with a quarter of the weight missing: 1.5 · 4 / 3 = 2.
    assert await score(*parts) == Reward(value=2.0, components={"right": 0.5, "judge/skipped": 1.0})


async def test_a_part_that_answers_is_marked_as_not_skipped() -> None:
    parts = [part("right", 0.5, 3.0), part("judge", 1.0, 1.0, on_failure="skip_part")]
    assert await score(*parts) == Reward(value=2.5, components={"right": 0.5, "judge": 1.0, "judge/skipped": 0.0})


async def test_a_sample_of_which_every_part_was_skipped_has_failed() -> None:
    outcome = await score(part("judge", LATE, on_failure="skip_part"), part("other", BROKEN, on_failure="skip_part"))
    assert isinstance(outcome, Failure) and outcome.message == "other: broken"


async def test_weight_that_is_all_skipped_fails_the_sample_although_a_weightless_part_answered() -> None:
    outcome = await score(part("judge", LATE, on_failure="skip_part"), part("watched", 1.0, 0.0))
    assert isinstance(outcome, Failure) and outcome.message == "judge: too slow"


async def test_a_sum_that_overflows_is_a_failure() -> None:
    outcome = await score(part("a", 1e308), part("b", 1e308))
    assert isinstance(outcome, Failure) and "not finite" in outcome.message


async def test_a_closed_gate_gives_the_stated_value_and_asks_no_further_part() -> None:
    gate = GateConfig(at_least=1.0, otherwise=-0.25)
    form = part("form", lambda sample: float(sample.completion != "0"), 0.0, gate=gate)
    right = part("right", 1.0)
    outcomes = await CompositeScorer([right, form]).score(make_samples(3))
    assert outcomes == [
        Reward(value=-0.25, components={"form": 0.0}),
        Reward(value=1.0, components={"form": 1.0, "right": 1.0}),
        Reward(value=1.0, components={"form": 1.0, "right": 1.0}),
    ]
    assert (asked(form), asked(right)) == (["0-0/0", "0-1/0", "0-2/0"], ["0-1/0", "0-2/0"])


async def test_the_first_closed_gate_decides_and_later_ones_are_not_asked() -> None:
    first = part("first", 0.0, 0.0, gate=GateConfig(at_least=0.5, otherwise=-1.0))
    second = part("second", 0.0, 0.0, gate=GateConfig(at_least=0.5, otherwise=-2.0))
    outcome = await score(first, second, part("right", 1.0))
    assert (outcome, asked(second)) == (Reward(value=-1.0, components={"first": 0.0}), [])


async def test_a_gate_with_a_weight_also_adds_to_the_total() -> None:
    outcome = await score(part("form", 1.0, 0.5, gate=GateConfig(at_least=1.0, otherwise=0.0)), part("right", 1.0))
    assert isinstance(outcome, Reward) and outcome.value == 1.5


async def test_a_gate_that_failed_is_no_closed_gate() -> None:
    right = part("right", 1.0)
    outcome = await score(part("form", LATE, 0.0, gate=GateConfig(at_least=1.0, otherwise=0.0)), right)
    assert (outcome, asked(right)) == (
        Failure(code=FailureCode.TIMEOUT, message="form: too slow", retryable=True),
        [],
    )


def routed(*extra: Part) -> list[Part]:
    return [
        part("math", 1.0, when={"kind": ("math", 3)}, minimum=0.0, maximum=1.0),
        part("code", 2.0, when={"kind": ("code",)}, minimum=0.0, maximum=4.0),
        part("short", -0.5, minimum=-1.0, maximum=0.0),
        *extra,
    ]


@pytest.mark.parametrize(
    ("kind", "components"),
    [("math", {"math": 1.0, "short": -0.5}), ("code", {"code": 2.0, "short": -0.5}), (3, {"math": 1.0, "short": -0.5})],
)
async def test_a_sample_is_scored_by_the_parts_of_its_route(kind: str | int, components: dict[str, float]) -> None:
    outcome = await score(*routed(), samples=[make_sample(kind=kind)])
    assert outcome == Reward(value=sum(components.values()), components=components)


@pytest.mark.parametrize(
    ("reference", "words"),
    [({"kind": "chat"}, "has 'kind' 'chat', and routes are for 'math', 3, 'code'"), ({"x": 1}, "has no 'kind'")],
)
async def test_a_sample_without_a_route_is_a_failure_and_no_part_is_asked(
    reference: dict[str, str | int], words: str
) -> None:
    parts = routed()
    outcome = await score(*parts, samples=[make_sample(**reference)])
    assert isinstance(outcome, Failure) and outcome.code is FailureCode.INVALID_SAMPLE and words in outcome.message
    assert [asked(one) for one in parts] == [[], [], []]


@pytest.mark.parametrize("reference", [{"kind": "chat"}, {"kind": [1, 2]}, {"kind": True}, {"x": 1}])
async def test_otherwise_takes_the_samples_that_no_other_part_is_for(reference: dict[str, object]) -> None:
    outcome = await score(*routed(part("judge", 0.75, when="otherwise")), samples=[make_sample(**reference)])  # type: ignore[arg-type]
    assert outcome == Reward(value=0.25, components={"judge": 0.75, "short": -0.5})


def test_the_range_holds_the_total_on_every_route() -> None:
    description = CompositeScorer(routed()).description
    assert (description.minimum, description.maximum) == (-1.0, 4.0)


def test_the_description_adds_up_ranges_and_needs() -> None:
    total = CompositeScorer(
        [
            part("right", 1.0, 2.0, minimum=0.0, maximum=1.0, version="3"),
            part("long", 0.0, -0.5, minimum=0.0, maximum=4.0, needs_token_ids=True),
        ]
    )
    assert total.description.name == "right_long"
    assert total.description.version == "2*right@3+-0.5*long@0"
    assert (total.description.minimum, total.description.maximum) == (-2.0, 2.0)
    assert total.description.needs_token_ids


def test_an_unbounded_part_leaves_the_total_unbounded_unless_it_is_clipped() -> None:
    free = part("free", 1.0, minimum=0.0)
    total = CompositeScorer([part("right", 1.0, minimum=0.0, maximum=1.0), free])
    assert (total.description.minimum, total.description.maximum) == (0.0, None)
    clipped = CompositeScorer([part("free", 1.0, minimum=0.0, shaping=Shaping(clip=(-2.0, 2.0)))])
    assert (clipped.description.minimum, clipped.description.maximum) == (0.0, 2.0)


def test_a_gate_stretches_the_range_to_its_own_value() -> None:
    gated = part("form", 1.0, 0.0, gate=GateConfig(at_least=1.0, otherwise=-7.0))
    total = CompositeScorer([gated, part("right", 1.0, minimum=0.0, maximum=1.0)])
    assert (total.description.minimum, total.description.maximum) == (-7.0, 1.0)


def test_two_parts_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="two rewards are named right"):
        CompositeScorer([part("right", 1.0), part("right", 0.0)])


def run(parts: Sequence[Part]) -> tuple[CompositeScorer, Reward | Failure]:
    """As `score`, for tests that try many examples."""
    total = CompositeScorer(parts)
    outcomes: list[Reward | Failure] = []

    async def story() -> None:
        outcomes.extend(await total.score([make_sample()]))

    VirtualTimeLoop().run(story())
    return total, outcomes[0]


@given(st.lists(st.tuples(WEIGHTS, VALUES), min_size=1, max_size=5), st.floats(-3, 3))
def test_the_total_is_linear_in_its_weights(rows: list[tuple[float, float]], factor: float) -> None:
    _, once = run([part(f"p{n}", value, weight) for n, (weight, value) in enumerate(rows)])
    _, scaled = run([part(f"p{n}", value, factor * weight) for n, (weight, value) in enumerate(rows)])
    assert isinstance(once, Reward) and isinstance(scaled, Reward)
    assert math.isclose(scaled.value, factor * once.value, rel_tol=1e-9, abs_tol=1e-9)


@given(st.lists(st.tuples(WEIGHTS, VALUES, st.sampled_from(["scored", "optional", "skipped"])), min_size=1, max_size=5))
def test_no_total_leaves_the_declared_range_whichever_parts_are_skipped(rows: list[tuple[float, float, str]]) -> None:
    parts = [
        part(
            f"p{n}",
            LATE if what == "skipped" else value,
            weight,
            minimum=0.0,
            maximum=1.0,
            on_failure="retry" if what == "scored" else "skip_part",
        )
        for n, (weight, value, what) in enumerate(rows)
    ]
    total, outcome = run(parts)
    if isinstance(outcome, Reward):
        assert fault_in_reward(outcome, description=total.description, completion="7") is None
    else:
        assert outcome == Failure(code=FailureCode.TIMEOUT, message=outcome.message, retryable=True)
        assert all(what == "skipped" for weight, _, what in rows if weight)
