"""How far a mean has moved between two models that answered the same prompts, and how sure that is.

Pure. It must not know what was measured. Invariants: only the differences on the same prompt count, so that prompts
which are hard for both widen nothing; the same numbers give the same interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from services.control.wilson import wilson_interval

_RESAMPLES = 10_000
_RESAMPLES_AT_ONCE = 500
_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedChange:
    """The mean before and after, and the 95% interval of their difference, after less before."""

    before: float
    after: float
    interval_95: tuple[float, float]
    num_prompts: int

    @property
    def change(self) -> float:
        return self.after - self.before


def paired_change(before: Sequence[float], after: Sequence[float]) -> PairedChange:
    """Compare a number for each prompt before with the one for the same prompt after.

    The interval is Newcombe's where all numbers are 0 or 1, and a bootstrap of the prompts elsewhere.
    """
    assert len(before) == len(after) > 0
    is_binary = {*before, *after} <= {0.0, 1.0}
    interval = _newcombe(before, after) if is_binary else _bootstrap(before, after)
    return PairedChange(before=fmean(before), after=fmean(after), interval_95=interval, num_prompts=len(before))


def _newcombe(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of a difference of paired shares: Newcombe 1998 (Statistics in Medicine 17, 2635), method 10.

    Wilson's intervals of both shares, put together by the correlation φ of the pairs, which is corrected for
    continuity. Unlike an interval of the differing pairs alone (Wald's, or McNemar's) it has a width where none differ.
    """
    count = len(before)
    both = sum(x == y == 1.0 for x, y in zip(before, after, strict=True))
    lost, won = round(sum(before)) - both, round(sum(after)) - both
    neither = count - both - lost - won
    old, new = (both + lost) / count, (both + won) / count
    (old_low, old_high), (new_low, new_high) = wilson_interval(old, count), wilson_interval(new, count)
    product = float(both * neither - lost * won)
    if product > 0:
        product = max(product - count / 2, 0)
    margins = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    phi = product / math.sqrt(margins) if margins else 0.0
    below = _side(new - new_low, old_high - old, phi)
    above = _side(new_high - new, old - old_low, phi)
    return new - old - below, new - old + above


def _side(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))


def _bootstrap(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """The 95% percentile interval of the mean difference over resamples of the prompts (Efron 1979)."""
    differences = np.subtract(after, before)
    draw = np.random.default_rng(_SEED)
    means = [
        differences[draw.integers(len(differences), size=(_RESAMPLES_AT_ONCE, len(differences)))].mean(axis=1)
        for _ in range(_RESAMPLES // _RESAMPLES_AT_ONCE)
    ]
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return float(low), float(high)
