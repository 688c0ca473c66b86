"""Settings of the policy's updates: how many a step, and the loss that each of them descends.

It must not import torch.
"""

from typing import Literal

from pydantic import Field

from services.contracts.settings import Section


class PolicyLossConfig(Section):
    """Epochs and mini-batches, clip ranges, averaging, entropy bonus."""

    num_epochs: int = Field(default=1, ge=1)
    """Passes over each step's rollouts."""
    num_minibatches: int = Field(default=1, ge=1)
    """Parts into which each pass is split; each part is one optimizer step."""
    loss_aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
    """Average of the loss over all trained tokens, or over each completion first and then over completions."""
    clip_ratio_low: float = Field(default=0.2, gt=0, lt=1)
    """PPO's clip range below 1: the probability ratio stops mattering under 1 - this."""
    clip_ratio_high: float = Field(default=0.2, gt=0)
    """PPO's clip range above 1; larger than clip_ratio_low, it leaves rare tokens more room to grow."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus; positive values keep the policy from narrowing."""

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps in one learner step."""
        return self.num_epochs * self.num_minibatches
