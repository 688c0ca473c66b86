"""Settings of the critic: where values come from, and the loss that they descend.

It must not import torch. Invariant: a section that was built sets nothing of a critic that the algorithm has not, its
learning rate aside.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from ppo_learner.algorithm_config import AlgorithmConfig
from ppo_learner.algorithms import ALGORITHMS

_READ_WITH_A_CRITIC = (
    "critic",
    "critic_path",
    "critic_warmup_steps",
    "value_clip",
    "value_huber_delta",
    "normalise_returns",
    "value_coefficient",
)
"""All but critic_lr, which stays in a file whose algorithm is changed by a flag, as lr does."""


class CriticConfig(AlgorithmConfig):
    """The value function of algorithms that have one."""

    critic: Literal["model", "value_head"] = "model"
    """Where values come from: a transformer of their own, or a head on the policy's last hidden states."""
    critic_path: str | None = None
    """Folder or hub name of the critic's initial weights; the policy's where it is not given."""
    critic_lr: float = Field(default=5e-6, gt=0)
    """Peak learning rate of the critic, or of the value head; an algorithm without a critic does not read it."""
    critic_warmup_steps: int = Field(default=0, ge=0)
    """First steps in which only the critic learns; needs critic: model."""
    value_clip: float | None = Field(default=0.2, gt=0)
    """Values may move this far from their old ones within a step before the loss stops pulling; None: no clip."""
    value_huber_delta: float | None = Field(default=None, gt=0)
    """Errors beyond this count linearly and not as their square (Huber), which spares the critic outliers; None: all as
    their square."""
    normalise_returns: bool = False
    """Have the critic predict returns on the scale of all returns so far: less their mean, over their deviation. It
    keeps the loss of values on one scale, whatever that of the rewards is. When that scale changes, the critic's last
    layer is corrected such that what it predicts does not (PopArt)."""
    value_coefficient: float = Field(default=0.5, gt=0)
    """Weight of the value loss beside the policy loss; with critic: model it scales only the critic's gradient."""

    @model_validator(mode="after")
    def _critic_is_read(self) -> Self:
        for name in () if self.parts.needs_critic else _READ_WITH_A_CRITIC:
            if self.differs(name):
                with_one = " or ".join(other for other, parts in ALGORITHMS.items() if parts.needs_critic)
                raise ValueError(
                    f"{name} {getattr(self, name)!r} has no effect with algorithm {self.algorithm}, "
                    f"which has no critic; remove it, or use {with_one}"
                )
        return self

    @model_validator(mode="after")
    def _critic_fits(self) -> Self:
        if self.critic_path is not None and self.critic != "model":
            raise ValueError(
                f"critic_path {self.critic_path!r} has no effect with critic: {self.critic}; remove it, or use "
                "critic: model"
            )
        if self.critic_warmup_steps and self.critic != "model":
            raise ValueError(
                f"critic_warmup_steps {self.critic_warmup_steps} needs a critic apart from the policy; "
                "set it to 0, or use critic: model"
            )
        return self
