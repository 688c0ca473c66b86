"""The soft overlong punishment of DAPO (arXiv 2503.14476, equation 13).

    0                                       for |y| <= L_max - L_cache
    ((L_max - L_cache) - |y|) / L_cache     for L_max - L_cache < |y| <= L_max
    -1                                      for L_max < |y|

It must not know what a completion says, only how long it is.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from reward_server.function import RewardFunction, RewardOptions, Score
from services.contracts.records import Failure, FailureCode, RewardSample


class LengthPenalty(RewardOptions):
    """Punishes a completion for the part of its length that lies within `cache_length` of `max_length`."""

    max_length: int = Field(ge=1)
    """L_max: the length at which the penalty is -1."""
    cache_length: int = Field(ge=1)
    """L_cache: how far below `max_length` the penalty begins."""
    unit: Literal["tokens", "characters"] = "tokens"
    """What lengths are counted in; tokens are the policy's own."""

    @model_validator(mode="after")
    def _cache_fits(self) -> Self:
        if self.cache_length > self.max_length:
            raise ValueError(f"cache_length is {self.cache_length}, more than max_length ({self.max_length})")
        return self

    def reward(self) -> RewardFunction:
        return RewardFunction(
            self.score,
            name="length_penalty",
            version="1",
            needs_token_ids=self.unit == "tokens",
            minimum=-1.0,
            maximum=0.0,
        )

    def score(self, sample: RewardSample) -> Score:
        length = len(sample.token_ids if self.unit == "tokens" else sample.completion)
        if length == 0 and sample.completion:
            message = "the sample has no token ids; send them, or set unit: characters"
            return Failure(code=FailureCode.INVALID_SAMPLE, message=message)
        return soft_overlong_penalty(length, max_length=self.max_length, cache_length=self.cache_length)


def soft_overlong_penalty(length: int, *, max_length: int, cache_length: int) -> float:
    """Equation 13 of arXiv 2503.14476, in [-1, 0]; all three lengths in one unit."""
    excess = length - (max_length - cache_length)
    return max(min(-excess / cache_length, 0.0), -1.0)
