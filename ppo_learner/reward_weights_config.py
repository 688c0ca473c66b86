"""Settings that say which rewards count: those of whole completions, those of their steps, or both.

It must not import torch. Invariant: a section that was built has something to learn from.
"""

from typing import Self

from pydantic import Field, model_validator

from ppo_learner.algorithm_config import AlgorithmConfig


class RewardWeightsConfig(AlgorithmConfig):
    """Factors on the rewards of completions and of steps."""

    total_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Factor on each completion's total reward, which stands on its last token; grpo_process has 0."""
    step_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Factor on the rewards of its steps, each of which stands on the step's last token; grpo_process has 1. Above 0
    the reward must give steps."""
    total_includes_steps: bool = False
    """The total already contains the sum of the steps, which is then taken off it, so that nothing counts twice. Needs
    total_weight above 0."""

    @property
    def uses_steps(self) -> bool:
        """Whether the rewards of steps count."""
        return self.step_weight > 0

    @property
    def normalises_steps(self) -> bool:
        """Whether the algorithm learns from the rewards of steps in the first place."""
        return self.parts.advantage == "step_normalised"

    @model_validator(mode="after")
    def _reward_weights_fit(self) -> Self:
        if self.normalises_steps and not self.uses_steps:
            raise ValueError(f"step_weight 0 leaves nothing of {self.algorithm}; use algorithm grpo, or raise it")
        if not self.total_weight and not self.step_weight:
            raise ValueError("total_weight and step_weight are both 0, which leaves nothing to learn from; raise one")
        if self.parts.needs_greedy_baseline and self.uses_steps:
            raise ValueError(
                f"{self.algorithm} compares a completion's total with the greedy answer's, and its steps with nothing; "
                "set step_weight to 0"
            )
        if self.total_includes_steps and not self.uses_steps:
            raise ValueError("total_includes_steps has no effect with step_weight 0; remove it, or raise step_weight")
        return self
