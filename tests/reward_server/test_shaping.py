"""Normalised and clipped values by hand, through warm-up and restart, and always within the declared range."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_server.composition import CompositeScorer
from reward_server.config import RewardServerConfig
from reward_server.ensemble import EnsembleScorer
from reward_server.function import RewardFunction
from reward_server.part_config import EnsembleConfig, NormaliseConfig, RewardSource
from reward_server.parts import Part
from reward_server.scorer import FunctionScorer
from reward_server.shaping import Moments, Shaping
from services.contracts.errors import UserError
from services.contracts.records import Failure, Reward, RewardSample, reward_versions
from tests.reward_server.composing import LATE, part
from tests.reward_server.serving import (
    IMPATIENT,
    Connect,
    completion_as_number,
    make_sample,
    make_samples,
    serving,
)

BATCHES = st.lists(st.lists(st.floats(-1e6, 1e6), max_size=5), min_size=1, max_size=5)


@given(BATCHES)
def test_moments_are_those_of_all_values_however_they_were_batched(batches: list[list[float]]) -> None:
    moments = Moments()
    for batch in batches:
        moments = moments.extended(batch)
    values = [value for batch in batches for value in batch]
    assert moments.count == len(values)
    if values:
        assert math.isclose(moments.mean, fmean(values), rel_tol=1e-9, abs_tol=1e-6)
        assert math.isclose(moments.std, pstdev(values), rel_tol=1e-6, abs_tol=1e-3)


def test_a_fixed_scale_is_a_formula() -> None:
    shaping = Shaping(NormaliseConfig(mean=2.0, std=0.5, limit=3.0))
    assert shaping.shape([2.0, 3.0, 99.0]) == [0.0, 2.0, 3.0]
    assert shaping.shape([2.0]) == [0.0]
    assert shaping.bounds((-math.inf, math.inf)) == (-3.0, 3.0)


def test_running_statistics_count_from_the_batch_after_the_warm_up() -> None:
    shaping = Shaping(NormaliseConfig(warm_up=4, limit=10.0))
    assert shaping.shape([1.0, 3.0]) == [1.0, 3.0]
    assert shaping.shape([1.0, 3.0]) == [1.0, 3.0], "the statistics of a batch count for later ones only"
    assert shaping.shape([2.0, 5.0]) == [0.0, 3.0], "mean 2 and deviation 1 of the four before"


def test_a_running_scale_stays_until_twice_the_values_were_seen_and_each_has_a_version() -> None:
    shaping = Shaping(NormaliseConfig(warm_up=2))
    versions = []
    for _ in range(9):
        versions.append(shaping.scale_version)
        shaping.shape([1.0, 3.0 + len(versions)])
    assert [versions.index(version) for version in versions] == [0, 1, 2, 2, 4, 4, 4, 4, 8]
    assert versions[0] == Shaping(NormaliseConfig(mean=1.0, std=2.0)).scale_version == Shaping().scale_version == ""


def test_a_part_that_never_varied_is_zero() -> None:
    shaping = Shaping(NormaliseConfig(warm_up=2))
    shaping.shape([7.0, 7.0])
    assert shaping.shape([7.0]) == [0.0]


def test_statistics_go_on_from_their_file_and_begin_anew_without(tmp_path: Path) -> None:
    kept = NormaliseConfig(warm_up=2, file=tmp_path / "statistics.json")
    Shaping(kept).shape([1.0, 3.0])
    assert Shaping(kept).shape([3.0]) == [1.0]
    assert Shaping(kept.model_copy(update={"file": None})).shape([3.0]) == [3.0]


@pytest.mark.parametrize("text", ["{", '{"count": 3}x', '{"mena": 1}', '{"count": -1, "mean": 0, "squares": 0}', "[1]"])
def test_a_damaged_file_of_statistics_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "statistics.json"
    path.write_text(text)
    with pytest.raises(UserError, match="delete the file to begin anew"):
        Shaping(NormaliseConfig(file=path))


def test_a_file_that_cannot_be_written_is_told_before_anything_is_scored(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be kept in .*No such file"):
        Shaping(NormaliseConfig(file=tmp_path / "missing" / "statistics.json"))


@given(
    st.lists(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=4), max_size=4),
    st.integers(2, 6),
    st.floats(0.1, 5.0),
)
def test_whatever_is_shaped_stays_within_the_declared_range(
    batches: list[list[float]], warm_up: int, limit: float
) -> None:
    shaping = Shaping(NormaliseConfig(warm_up=warm_up, limit=limit), clip=(-1.0, 2.0))
    low, high = shaping.bounds((-math.inf, math.inf))
    assert (low, high) == (max(-limit, -1.0), min(limit, 2.0))
    assert all(low <= value <= high for batch in batches for value in shaping.shape(batch))


def alternating() -> list[RewardSample]:
    return [make_sample(index, completion=str(1 + 2 * (index % 2))) for index in range(8)]


def normalised() -> Part:
    def score(samples: Sequence[RewardSample]) -> list[float]:
        return [completion_as_number(sample) for sample in samples]

    scorer = FunctionScorer(RewardFunction(score, name="number", batched=True), timeout_s=5.0, num_threads=1)
    return Part(scorer=scorer, label="number", shaping=Shaping(NormaliseConfig(warm_up=4)))


def as_an_ensemble() -> Part:
    members = [normalised(), replace(part("length", 0.0), on_failure="skip_part")]
    config = EnsembleConfig(members=[RewardSource(name="a"), RewardSource(name="b")])
    return Part(scorer=EnsembleScorer("both", members, config), label="both", weight=2.0)


@pytest.mark.parametrize("make_part", [normalised, as_an_ensemble])
async def test_a_group_that_a_batch_divides_is_scored_on_one_scale(
    make_part: Callable[[], Part], connect: Connect
) -> None:
    config = RewardServerConfig(port=0, drain_s=0.0, max_batch_samples=4, num_threads=1)
    async with serving(CompositeScorer([make_part()]), config) as address:
        client = connect([address], IMPATIENT)
        outcomes = await client.score(alternating())

    assert [outcome.value for outcome in outcomes if isinstance(outcome, Reward)] == [-1.0, 1.0] * 4
    (version,) = reward_versions(outcomes)
    assert "@scale-" in version


async def test_a_group_whose_sample_was_late_is_scored_on_one_scale(connect: Connect) -> None:
    late = iter([True])

    def score(sample: RewardSample) -> float | Failure:
        return LATE if sample.id == "0-7/0" and next(late, False) else completion_as_number(sample)

    number = part("number", score, shaping=Shaping(NormaliseConfig(warm_up=4)))
    async with serving(CompositeScorer([number])) as address:
        outcomes = await connect([address], IMPATIENT).score(alternating())

    assert len({outcome.value for outcome in outcomes if isinstance(outcome, Reward)}) == 2


async def test_a_group_of_two_calls_is_scored_on_one_scale_by_replicas_with_statistics_of_their_own(
    connect: Connect,
) -> None:
    config = RewardServerConfig(port=0, drain_s=0.0, max_samples_per_call=4)
    async with (
        serving(CompositeScorer([normalised()]), config) as one,
        serving(CompositeScorer([normalised()]), config) as two,
    ):
        for address, values in ((one, "24"), (two, "68")):
            warm_up = [make_sample(index, completion=value) for index, value in enumerate(2 * values)]
            await connect([address], IMPATIENT).score(warm_up)
        outcomes = await connect([one, two], IMPATIENT).score(alternating())

    assert len({outcome.value for outcome in outcomes if isinstance(outcome, Reward)}) == 2


async def test_the_components_show_the_raw_value_and_what_counts() -> None:
    shaped = part("judge", lambda sample: float(sample.completion), 2.0, shaping=Shaping(clip=(0.0, 1.5)))
    outcomes = await CompositeScorer([shaped]).score(make_samples(3))
    assert outcomes == [
        Reward(value=2 * min(raw, 1.5), components={"judge": raw, "judge/shaped": min(raw, 1.5)})
        for raw in (0.0, 1.0, 2.0)
    ]
