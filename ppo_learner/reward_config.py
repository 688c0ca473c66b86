"""Settings of the learner when it trains a reward model.

It must not import torch: the command line reads it for help texts. Invariant: a section that was built names an
objective that exists.
"""

from typing import Self

from pydantic import Field, field_validator, model_validator

from ppo_learner.optimizer_config import OptimizerConfig
from ppo_learner.reward_objectives import REWARD_OBJECTIVES, RewardObjective


class RewardModelConfig(OptimizerConfig):
    """How a reward model learns from judged completions."""

    objective: str = "bradley_terry"
    """Name of the objective: bradley_terry (pairs), plackett_luce (rankings), outcome or outcome_regression (labelled
    completions), process or process_regression (labelled steps)."""
    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Every dropout rate of the model while it is trained."""
    from_scratch: bool = False
    """Start from random weights of the shape that model.path's config.json describes, not from its weights."""
    version: str | None = Field(default=None, min_length=1)
    """Name of the trained weights, recorded with every score; a digest of them where it is not given."""

    @property
    def parts(self) -> RewardObjective:
        """The chosen objective's loss, form of examples and head."""
        return REWARD_OBJECTIVES[self.objective]

    @field_validator("objective")
    @classmethod
    def _objective_exists(cls, name: str) -> str:
        if name not in REWARD_OBJECTIVES:
            raise ValueError(f"objective {name!r} does not exist; choose one of {', '.join(REWARD_OBJECTIVES)}")
        return name

    @model_validator(mode="after")
    def _sequences_are_whole(self) -> Self:
        if self.sequence_parallel > 1:
            raise ValueError(
                f"sequence_parallel {self.sequence_parallel} is for policies and critics; a reward model reads whole "
                "sequences: set it to 1"
            )
        return self

    @model_validator(mode="after")
    def _weights_are_whole(self) -> Self:
        if self.lora and self.lora.quantise:
            raise ValueError(
                f"lora.quantise {self.lora.quantise} is for policies and critics; a reward model's weights stay whole: "
                "remove it"
            )
        return self
