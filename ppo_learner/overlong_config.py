"""Settings for completions that come near their limit or are cut at it.

It must not import torch. Invariant: a section that was built has a penalty whose range begins above length 0.
"""

from typing import Self

from pydantic import Field, model_validator

from services.contracts.settings import Section


class OverlongConfig(Section):
    """DAPO's overlong reward shaping and overlong filtering."""

    overlong_tokens: int | None = Field(default=None, ge=1)
    """Width, in tokens, of the range before the limit in which longer completions lose more and more reward, from
    nothing to overlong_penalty at the limit itself; None takes nothing off. Needs total_weight above 0."""
    overlong_penalty: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """What a completion at the limit loses of its reward."""
    overlong_limit: int | None = Field(default=None, ge=1)
    """That limit, in completion tokens; by default rollout.max_completion_tokens."""
    mask_truncated: bool = False
    """Leave the tokens of completions that were cut at their limit out of the loss; their rewards, KL penalties and
    lengths still count in the baselines of their groups."""

    def for_length(self, max_completion_tokens: int) -> Self:
        """These settings with the default of `overlong_limit` resolved. Raises ValueError where the range is wider."""
        if self.overlong_tokens is None or self.overlong_limit is not None:
            return self
        if self.overlong_tokens > max_completion_tokens:
            raise ValueError(_too_wide(self.overlong_tokens, max_completion_tokens))
        return self.model_copy(update={"overlong_limit": max_completion_tokens})

    @model_validator(mode="after")
    def _range_fits(self) -> Self:
        if self.overlong_tokens is None:
            for name in ("overlong_penalty", "overlong_limit"):
                if self.differs(name):
                    raise ValueError(f"{name} has no effect without overlong_tokens; set that, or remove it")
        elif self.overlong_limit is not None and self.overlong_tokens > self.overlong_limit:
            raise ValueError(_too_wide(self.overlong_tokens, self.overlong_limit))
        return self


def _too_wide(tokens: int, limit: int) -> str:
    return f"overlong_tokens {tokens} is more than the limit of {limit} completion tokens; lower it"
