"""What the rewards of a step, and those of a held-out evaluation, say of the reward itself.

It must not know what is done about it; `alarms` does. Invariant: a signal that the numbers do not have (no spread, no
declared maximum) is left out, never made up.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from services.contracts.records import ScoredGroup
from services.control.catalogue import (
    AGREEMENT,
    AT_MAXIMUM,
    FLAT_GROUPS,
    GOLD,
    GOLD_SPREAD,
    LENGTH_CORRELATION,
    ONE_VALUE,
    PROXY,
    PROXY_SPREAD,
)


def reward_signals(groups: Sequence[ScoredGroup], *, maximum: float | None) -> dict[str, float]:
    """Signals of one step's rewards.

    Args:
        maximum: the largest value that the reward declares.

    Returns:
        `at_maximum`: the share of rewards at the declared maximum. `one_value`: the share of the most frequent value,
        where that is not the maximum. `flat_groups`: of the groups of several, the share whose rewards are all equal,
        those that dynamic sampling left out among them. `length_correlation`: of reward and completion tokens within
        groups, which is Pearson's after the mean of each group was taken off both.
    """
    values = [reward.value for scored in groups for reward in scored.rewards]
    value, count = Counter(values).most_common(1)[0]
    signals = {ONE_VALUE: 0.0 if value == maximum else count / len(values)}
    if maximum is not None:
        signals[AT_MAXIMUM] = fmean(value == maximum for value in values)
    compared = [scored for scored in groups if len(scored.rewards) > 1]
    if compared:
        signals[FLAT_GROUPS] = fmean(scored.is_flat for scored in compared)
    within = correlation(
        [value for scored in groups for value in _centred([reward.value for reward in scored.rewards])],
        [length for scored in groups for length in _centred([r.num_completion_tokens for r in scored.group.rollouts])],
    )
    return signals | ({} if within is None else {LENGTH_CORRELATION: within})


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldComparison:
    """The same held-out completions under the reward that trains (the proxy) and under the one that counts."""

    proxy: Sequence[float]
    gold: Sequence[float]

    def metrics(self) -> dict[str, float]:
        agreement = correlation(self.proxy, self.gold)
        return {
            GOLD: fmean(self.gold),
            GOLD_SPREAD: pstdev(self.gold),
            PROXY: fmean(self.proxy),
            PROXY_SPREAD: pstdev(self.proxy),
            **({} if agreement is None else {AGREEMENT: agreement}),
        }


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's correlation, in [-1, 1]; None where either does not vary."""
    x, y = _centred(first), _centred(second)
    scale = math.sqrt(sum(value * value for value in x)) * math.sqrt(sum(value * value for value in y))
    if not scale > 0 or not math.isfinite(scale):
        return None
    return min(max(sum(a * b for a, b in zip(x, y, strict=True)) / scale, -1.0), 1.0)


def _centred(values: Sequence[float]) -> list[float]:
    mean = fmean(values)
    return [value - mean for value in values]
