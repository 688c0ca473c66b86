"""The running mean and deviation of returns, on whose scale the critic predicts.

It must not know networks or ranks. It is the adaptive rescaling of targets of PopArt (van Hasselt et al. 2016, arXiv
1602.07714), over all returns so far. Invariant: the moments are those of all finite returns merged so far, whatever
parts they came in.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_SMALLEST_DEVIATION = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class ReturnMoments:
    """How many returns there were, their mean, and the sum of their squared distances from it."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def deviation(self) -> float:
        """Of all returns; 1 where there were none, or where they were all the same."""
        deviation = math.sqrt(self.squares / self.count) if self.count else 0.0
        return deviation if deviation > _SMALLEST_DEVIATION else 1.0

    def merged(self, returns: Tensor) -> "ReturnMoments":
        """The moments with further returns (A,) taken in (Chan et al. 1983); as they are if one is not finite."""
        if not len(returns) or not torch.isfinite(returns).all():
            return self
        added, mean = len(returns), float(returns.double().mean())
        count, distance = self.count + added, mean - self.mean
        squares = float((returns.double() - mean).square().sum())
        return ReturnMoments(
            count=count,
            mean=self.mean + distance * added / count,
            squares=self.squares + squares + distance**2 * self.count * added / count,
        )

    def rescaling(self, after: "ReturnMoments") -> tuple[float, float]:
        """(f, s) such that f·x + s says on the scale `after` what x says on this one: σ/σ' and (μ − μ')/σ'."""
        return self.deviation / after.deviation, (self.mean - after.mean) / after.deviation

    def normalise(self, values: Tensor) -> Tensor:
        """From the scale of rewards to the critic's."""
        return (values - self.mean) / self.deviation

    def restore(self, values: Tensor) -> Tensor:
        """From the critic's scale to that of rewards."""
        return values * self.deviation + self.mean
