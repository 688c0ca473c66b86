"""Settings of the learner when it learns from demonstrations.

It must not import torch: the command line reads it for help texts.
"""

from typing import Self

from pydantic import Field, model_validator

from ppo_learner.moe_config import MoeConfig
from ppo_learner.packing_config import PackingConfig
from ppo_learner.teacher_config import TeacherConfig


class SupervisedConfig(MoeConfig, PackingConfig):
    """How the policy learns from demonstrations."""

    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate of the policy."""
    teacher: TeacherConfig | None = None
    """A model whose distribution over each learnt token is learnt beside the token itself, or in its place."""

    @model_validator(mode="after")
    def _teacher_takes_whole_sequences(self) -> Self:
        if self.teacher and self.sequence_parallel > 1:
            raise ValueError(f"sequence_parallel {self.sequence_parallel} does not go with a teacher; set it to 1")
        if self.teacher and self.packing == "on":
            raise ValueError("packing: on does not go with a teacher, which reads sequences side by side; use auto")
        return self

    @model_validator(mode="after")
    def _router_loss_fits(self) -> Self:
        if self.teacher and self.router_loss_coefficient:
            raise ValueError(
                f"router_loss_coefficient {self.router_loss_coefficient} has no effect beside a teacher; set it to 0"
            )
        return self
