"""Settings of the policy's updates: how many a step, and the loss that each of them descends.

It must not import torch. Invariant: a section that was built sets nothing that its loss does not read.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from ppo_learner.algorithm_config import AlgorithmConfig

_READ_BY = {
    "clip_ratio_low": ("ppo_clip", "gspo", "cispo"),
    "clip_ratio_high": ("ppo_clip", "gspo", "cispo"),
    "dual_clip": ("ppo_clip", "gspo"),
    "sapo_temperature_positive": ("sapo",),
    "sapo_temperature_negative": ("sapo",),
}
"""Which losses read each bound."""


class PolicyLossConfig(AlgorithmConfig):
    """Epochs and mini-batches, clip ranges, averaging, entropy bonus."""

    num_epochs: int = Field(default=1, ge=1)
    """Passes over each step's rollouts."""
    num_minibatches: int = Field(default=1, ge=1)
    """Parts into which each pass is split; each part is one optimizer step."""
    kl_stop: float | None = Field(default=None, gt=0)
    """KL to the policy that the ratio compares with, in nats per token, above which a step's further updates are left
    out, and the demonstrations that belong to them: a hard trust region. None: no update is."""
    loss_aggregation: Literal["token_mean", "sequence_mean", "constant_length"] = "token_mean"
    """Average of the loss over all trained tokens; or over each completion first, and then over completions; or sum
    over each completion's tokens divided by a constant, loss_length, and then the mean over completions."""
    loss_length: int | None = Field(default=None, ge=1)
    """The constant of constant_length, in tokens; by default rollout.max_completion_tokens."""
    clip_ratio_low: float = Field(default=0.2, gt=0, le=1)
    """Clip range below 1: the probability ratio stops mattering under 1 - this."""
    clip_ratio_high: float = Field(default=0.2, gt=0)
    """Clip range above 1; larger than clip_ratio_low, it leaves rare tokens more room to grow."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Of tokens with a negative advantage, the ratio above which they stop mattering too; None: never. Usually 3."""
    sapo_temperature_positive: float = Field(default=1.0, gt=0)
    """How fast sapo's gate closes on tokens with a positive advantage as their ratio leaves 1."""
    sapo_temperature_negative: float = Field(default=1.05, gt=0)
    """The same for tokens with a negative advantage."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus; positive values keep the policy from narrowing."""

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps in one learner step."""
        return self.num_epochs * self.num_minibatches

    @model_validator(mode="after")
    def _bounds_are_read(self) -> Self:
        for name, losses in _READ_BY.items():
            if self.differs(name) and self.parts.loss not in losses:
                raise ValueError(
                    f"{name} {getattr(self, name)} has no effect with algorithm {self.algorithm}, whose loss is "
                    f"{self.parts.loss}; remove it, or use an algorithm with {' or '.join(losses)}"
                )
        return self

    @model_validator(mode="after")
    def _loss_length_is_read(self) -> Self:
        if self.loss_length is not None and self.loss_aggregation != "constant_length":
            raise ValueError(
                f"loss_length {self.loss_length} has no effect with loss_aggregation {self.loss_aggregation}; "
                "remove it, or use constant_length"
            )
        return self

    @model_validator(mode="after")
    def _something_can_be_stopped(self) -> Self:
        if self.kl_stop is not None and self.updates_per_step == 1:
            raise ValueError(
                f"kl_stop {self.kl_stop} has no effect where a step is a single update; remove it, or raise "
                "num_epochs or num_minibatches"
            )
        return self
