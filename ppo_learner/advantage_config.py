"""Settings of advantages: discounting, what they are normalised by, and how difficulty and length weigh.

It must not import torch. Invariant: a section that was built weighs nothing that its advantage does not read.
"""

from typing import Self

from pydantic import Field, model_validator

from ppo_learner.algorithm_config import AlgorithmConfig

READ_BY = {
    "gamma": ("gae", "monte_carlo", "greedy_baseline"),
    "gae_lambda": ("gae",),
    "turn_gamma": ("gae", "monte_carlo", "greedy_baseline"),
    "turn_gae_lambda": ("gae",),
    "normalise_group_std": ("group_normalised", "step_normalised"),
    "length_penalty": ("group_normalised",),
    "difficulty_weighting": ("group_normalised",),
}
"""Which advantages read each setting."""


class AdvantageConfig(AlgorithmConfig):
    """Discount, GAE, group deviation, whitening, difficulty and length."""

    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount per token of future rewards."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """GAE's trade of bias (0) for variance (1)."""
    turn_gamma: float | None = Field(default=None, ge=0, le=1)
    """Discount from a turn's last token to the next turn's first, in place of gamma; by default the same. Without
    rollout.environment a completion is one turn, and this has no effect."""
    turn_gae_lambda: float | None = Field(default=None, ge=0, le=1)
    """GAE's trade between two turns, in place of gae_lambda; by default the same. Without rollout.environment it has no
    effect either."""
    whiten_advantages: bool = False
    """Shift and scale advantages to mean 0, deviation 1 over all tokens of the batch; ppo, reinforce_pp and
    reinforce_pp_baseline do."""
    normalise_group_std: bool = True
    """Divide GRPO's advantages by the group's standard deviation; off, hard and easy prompts weigh by their spread."""
    length_penalty: float = Field(default=0.0, ge=0)
    """How much solutions that are long for their group earn less: e^(-this · z) of their reward, with z the length less
    the mean of the group's solutions, in deviations (GRPO-LEAD has 0.05); 0: nothing. Needs total_weight above 0."""
    difficulty_weighting: bool = False
    """Weigh advantages by how rare a success, or a failure, is among the completions of the prompt (GRPO-LEAD)."""
    solved_reward: float = 1.0
    """Total reward from which a completion counts as a solution, for length_penalty and difficulty_weighting."""

    @model_validator(mode="after")
    def _weights_are_read(self) -> Self:
        for name, advantages in READ_BY.items():
            if self.differs(name) and self.parts.advantage not in advantages:
                raise ValueError(
                    f"{name} {getattr(self, name)} has no effect with algorithm {self.algorithm}, whose advantage is "
                    f"{self.parts.advantage}; remove it, or use an algorithm with {' or '.join(advantages)}"
                )
        if self.solved_reward != 1.0 and not (self.length_penalty or self.difficulty_weighting):
            raise ValueError(
                f"solved_reward {self.solved_reward} has no effect without length_penalty and difficulty_weighting; "
                "remove it, or set one of them"
            )
        return self
