"""Paired intervals: hand-worked numbers, an independent way to each, and how often they hold the truth."""

import math

import numpy as np
import pytest

from services.control.paired_change import paired_change


def table(both: int, lost: int, won: int, neither: int) -> tuple[list[float], list[float]]:
    """Scores before and after, of so many prompts of each kind."""
    before = [1.0] * (both + lost) + [0.0] * (won + neither)
    after = [1.0] * both + [0.0] * lost + [1.0] * won + [0.0] * neither
    return before, after


def newcombe_in_numpy(both: int, lost: int, won: int, neither: int) -> tuple[float, float]:
    """Method 10 once more: Wilson's limits as roots of (p − θ)² = z²·θ(1 − θ)/n, as the paper derives them."""
    n, z = both + lost + won + neither, 1.959963984540054
    first, second = (both + lost) / n, (both + won) / n
    roots = [np.sort(np.roots([1 + z * z / n, -(2 * p + z * z / n), p * p]).real) for p in (first, second)]
    numerator = both * neither - lost * won
    numerator = max(numerator - n / 2, 0) if numerator > 0 else numerator
    margins = np.array([[both + lost, won + neither], [both + won, lost + neither]], dtype=float)
    phi = numerator / np.sqrt(margins.prod()) if margins.prod() else 0.0
    (low_1, high_1), (low_2, high_2) = roots
    quadratic = np.array([[1, -phi], [-phi, 1]])
    down, up = np.array([second - low_2, high_1 - first]), np.array([high_2 - second, first - low_1])
    return (
        second - first - math.sqrt(max(down @ quadratic @ down, 0)),
        second - first + math.sqrt(max(up @ quadratic @ up, 0)),
    )


def test_where_nothing_differs_the_interval_still_has_a_width() -> None:
    # Ten prompts, all right both times: Wilson's lower limit is 1 / (1 + z²/10) = 0.7225, and there is no φ.
    paired = paired_change(*table(10, 0, 0, 0))
    assert paired.change == 0.0
    assert paired.interval_95 == (pytest.approx(0.7225 - 1, abs=1e-4), pytest.approx(1 - 0.7225, abs=1e-4))


def test_a_drop_by_hand() -> None:
    # 50 prompts: 40 of them right before, 32 after, 30 both times. Wilson limits of 0.8 are 0.6696 and 0.8876, of 0.64
    # 0.5014 and 0.7586. φ = (30·8 − 10·2 − 25) / √(40·10·32·18) = 195 / 480 = 0.40625.
    paired = paired_change(*table(30, 10, 2, 8))
    assert (paired.before, paired.after) == (0.8, 0.64)
    below = math.sqrt(0.1386**2 - 2 * 0.40625 * 0.1386 * 0.0876 + 0.0876**2)
    above = math.sqrt(0.1186**2 - 2 * 0.40625 * 0.1186 * 0.1304 + 0.1304**2)
    assert paired.interval_95 == (pytest.approx(-0.16 - below, abs=2e-4), pytest.approx(-0.16 + above, abs=2e-4))
    assert paired.interval_95[1] < 0, "ten lost against two won is no accident"


@pytest.mark.parametrize("counts", [(30, 10, 2, 8), (0, 5, 5, 0), (499, 1, 0, 0), (20, 0, 0, 20), (1, 7, 2, 90)])
def test_newcombes_interval_agrees_with_an_independent_one(counts: tuple[int, int, int, int]) -> None:
    assert paired_change(*table(*counts)).interval_95 == pytest.approx(newcombe_in_numpy(*counts), abs=1e-9)


@pytest.mark.parametrize(("lost", "won"), [(0.02, 0.02), (0.1, 0.02), (0.0, 0.05)])
def test_nineteen_of_twenty_intervals_hold_the_true_change(lost: float, won: float) -> None:
    draw = np.random.default_rng(1)
    chances = [0.9 - lost, lost, won, 0.1 - won]
    held = 0
    for counts in draw.multinomial(200, chances, size=1000):
        low, high = paired_change(*table(*map(int, counts))).interval_95
        held += low <= won - lost <= high
    assert 0.93 <= held / 1000 <= 0.995


def test_the_bootstrap_of_rewards_agrees_with_the_normal_interval_of_the_differences() -> None:
    draw = np.random.default_rng(2)
    before = draw.normal(size=400)
    after = before * 0.5 + draw.normal(size=400) - 0.3
    paired = paired_change(before.tolist(), after.tolist())
    differences = after - before
    half = 1.96 * differences.std(ddof=1) / math.sqrt(400)
    expected = (differences.mean() - half, differences.mean() + half)
    assert paired.interval_95 == pytest.approx(expected, abs=0.1 * half)
    assert paired.change == pytest.approx(differences.mean())
    assert paired_change(before.tolist(), after.tolist()) == paired, "the same numbers give the same interval"


def test_what_is_hard_for_both_widens_nothing() -> None:
    draw = np.random.default_rng(3)
    difficulty, noise = draw.normal(scale=10, size=200), draw.normal(scale=0.1, size=200)
    low, high = paired_change(difficulty.tolist(), (difficulty + noise).tolist()).interval_95
    assert high - low < 0.05
