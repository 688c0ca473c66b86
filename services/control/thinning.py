"""Long rows of numbers, made short or smooth enough to look at.

It must not know what the numbers are. Invariant: a number that is not finite never spreads to its neighbours.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean


def thinned(values: Sequence[float], at_most: int) -> list[float]:
    """The values, or as many means of neighbours as are wanted."""
    count = min(at_most, len(values))
    bounds = [index * len(values) // count for index in range(count + 1)] if count else []
    return [finite_mean(values[start:end]) for start, end in pairwise(bounds)]


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Each value's mean with its neighbours, `window` in all and fewer at the ends; NaN stays NaN."""
    reach = window // 2
    return [
        finite_mean(values[max(0, index - reach) : index + reach + 1]) if math.isfinite(value) else math.nan
        for index, value in enumerate(values)
    ]


def finite_mean(values: Sequence[float]) -> float:
    """The mean of the finite values; NaN where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else math.nan
