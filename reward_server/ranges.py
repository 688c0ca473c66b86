"""Between which bounds a composed reward lies, given the bounds of its parts.

It must not know rewards or samples. Invariant: whatever values within their ranges the parts give, and whichever of
those that may be missing are missing, the composed value lies within the range found here (rounding aside).
"""

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

Range: TypeAlias = tuple[float, float]
"""A lower and an upper bound; an infinite one where there is none."""

UNBOUNDED: Range = (-math.inf, math.inf)


def scaled(bounds: Range, factor: float) -> Range:
    """The range of `factor` times a value; a negative factor turns it round."""
    if factor == 0:
        return 0.0, 0.0
    low, high = (factor * bound for bound in bounds)
    return min(low, high), max(low, high)


def clipped(bounds: Range, limits: Range) -> Range:
    """The range of a value after it was clipped to `limits`."""
    return within(bounds[0], limits), within(bounds[1], limits)


def within(value: float, limits: Range) -> float:
    """The nearest number within the limits."""
    return min(max(value, limits[0]), limits[1])


def hull(ranges: Iterable[Range]) -> Range:
    """The least range that holds all of them."""
    lows, highs = zip(*ranges, strict=True)
    return min(lows), max(highs)


def of_sum(required: Sequence[Range], optional: Sequence[Range], weights: Sequence[float]) -> Range:
    """The range of a weighted sum in which the weights of what is missing are shared out to the rest.

    Args:
        required: ranges of what is always there, already times their weights; `optional` likewise may be missing.
        weights: absolute weights of both, in order.
    """
    per_weight = [scaled(part, 1 / weight) for part, weight in zip([*required, *optional], weights, strict=True)]
    total = sum(weights)
    cut = len(required)
    rows = list(zip(weights, per_weight, strict=True))
    highest = _highest([(w, r[1]) for w, r in rows[:cut]], [(w, r[1]) for w, r in rows[cut:]])
    lowest = -_highest([(w, -r[0]) for w, r in rows[:cut]], [(w, -r[0]) for w, r in rows[cut:]])
    return total * lowest, total * highest


def of_mean(required: Sequence[Range], optional: Sequence[Range]) -> Range:
    """The range of the mean of what is there."""
    count = len(required) + len(optional)
    return scaled(of_sum(required, optional, [1.0] * count), 1 / count)


def of_minimum(required: Sequence[Range], optional: Sequence[Range]) -> Range:
    """The range of the least of what is there."""
    highs = [high for _, high in required]
    return hull([*required, *optional])[0], min(highs) if highs else max(high for _, high in optional)


def of_mean_minus_std(required: Sequence[Range], optional: Sequence[Range], penalty: float) -> Range:
    """A range that holds mean − penalty · std: numbers between two bounds deviate by at most half of their distance."""
    low, high = hull([*required, *optional])
    most = of_mean(required, optional)[1]
    return (low - penalty * (high - low) / 2 if penalty else low), most


def _highest(required: Sequence[tuple[float, float]], optional: Sequence[tuple[float, float]]) -> float:
    """The greatest weighted mean of all of `required` and any of `optional`, each a weight and a value."""
    total = sum(weight * value for weight, value in required)
    whole = sum(weight for weight, _ in required)
    for weight, value in sorted(optional, key=lambda pair: pair[1], reverse=True):
        if whole and value <= total / whole:
            break
        total, whole = total + weight * value, whole + weight
    return total / whole
