"""Signals of a step's rewards, and proxy against gold, worked by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.records import Reward, RolloutGroup, ScoredGroup
from services.control.reward_signals import GoldComparison, correlation, reward_signals
from tests.fakes import make_prompt, make_rollout

NUMBERS = st.floats(-1e3, 1e3)


def scored(row: int, rewards: list[float], lengths: list[int]) -> ScoredGroup:
    prompt = make_prompt(row)
    rollouts = tuple(
        make_rollout(prompt, sample_index=index, completion_ids=(7,) * length) for index, length in enumerate(lengths)
    )
    return ScoredGroup(
        group=RolloutGroup(prompt=prompt, rollouts=rollouts), rewards=tuple(Reward(value=value) for value in rewards)
    )


def test_shares_by_hand() -> None:
    groups = [scored(0, [1.0, 1.0], [3, 3]), scored(1, [0.0, 1.0], [2, 2])]
    flat = {"signals/flat_groups": 0.5}
    assert reward_signals(groups, maximum=1.0) == flat | {"signals/at_maximum": 0.75, "signals/one_value": 0.0}
    assert reward_signals(groups, maximum=2.0) == flat | {"signals/at_maximum": 0.0, "signals/one_value": 0.75}
    assert reward_signals(groups, maximum=None) == flat | {"signals/one_value": 0.75}


def test_a_group_of_one_is_not_one_without_difference() -> None:
    assert reward_signals([scored(0, [1.0], [3])], maximum=None) == {"signals/one_value": 1.0}


def test_length_is_correlated_within_groups_so_that_hard_prompts_with_long_answers_do_not_count() -> None:
    # Within each group the longer completion earns less; between the groups longer ones earn more.
    groups = [scored(0, [0.2, 0.0], [1, 3]), scored(1, [1.0, 0.8], [10, 12])]
    assert reward_signals(groups, maximum=None)["signals/length_correlation"] == pytest.approx(-1.0)
    # Centred: rewards ±0.5 and ±0.5, lengths ±1 and ∓2: (0.5 + 0.5 − 1 − 1) / sqrt(4 · 0.25) / sqrt(2 + 8).
    mixed = [scored(0, [0.0, 1.0], [1, 3]), scored(1, [0.0, 1.0], [5, 1])]
    assert reward_signals(mixed, maximum=None)["signals/length_correlation"] == pytest.approx(-1 / math.sqrt(10))


def test_gold_and_proxy_by_hand() -> None:
    metrics = GoldComparison(proxy=[1.0, 2.0, 3.0, 4.0], gold=[1.0, 0.0, 1.0, 0.0]).metrics()
    assert metrics == {
        "gold/reward": 0.5,
        "gold/reward_std": 0.5,
        "gold/proxy": 2.5,
        "gold/proxy_std": pytest.approx(math.sqrt(1.25)),
        # Covariance (−0.75 + 0.25 + 0.25 − 0.75) / 4 = −0.25, over 0.5 · sqrt(1.25).
        "gold/correlation": pytest.approx(-0.5 / math.sqrt(1.25)),
    }


def test_what_does_not_vary_has_no_correlation() -> None:
    assert correlation([1.0, 1.0], [0.0, 1.0]) is None
    assert "gold/correlation" not in GoldComparison(proxy=[1.0, 1.0], gold=[0.0, 1.0]).metrics()


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=9), st.floats(0.1, 10), NUMBERS)
def test_a_correlation_is_bounded_symmetric_and_blind_to_scale(
    pairs: list[tuple[float, float]], factor: float, shift: float
) -> None:
    x, y = [a for a, _ in pairs], [b for _, b in pairs]
    found = correlation(x, y)
    if found is not None and max(x) - min(x) > 1e-3 and max(y) - min(y) > 1e-3:
        assert -1.0 <= found <= 1.0
        assert correlation(y, x) == pytest.approx(found, abs=1e-6)
        assert correlation([-factor * a + shift for a in x], y) == pytest.approx(-found, abs=1e-6)
