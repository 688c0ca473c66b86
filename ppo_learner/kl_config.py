"""Settings of the penalty that keeps the policy near its reference.

It must not import torch. Invariant: a section that was built has a penalty that holds something.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from services.contracts.settings import Section


class KlConfig(Section):
    """The KL penalty, and how its weight is steered."""

    kl_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the KL penalty towards the initial policy; 0 loads no reference model. With kl_target it is the first
    one, and a resumed run goes on with what it was steered to."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of that KL per token: k1 unbiased, k2 low variance and biased, k3 unbiased and never negative."""
    kl_placement: Literal["reward", "loss"] = "reward"
    """Subtract the penalty from the rewards before advantages are computed, or add it to the loss."""
    kl_target: float | None = Field(default=None, gt=0)
    """KL per completion, in nats, that the coefficient is steered to; None keeps the coefficient fixed."""
    kl_horizon: int = Field(default=10_000, ge=1)
    """Completions over which an adaptive coefficient responds; smaller is quicker."""

    @model_validator(mode="after")
    def _kl_fits(self) -> Self:
        if self.kl_placement == "loss" and self.kl_estimator == "k1" and self.kl_coefficient:
            raise ValueError(
                "kl_estimator k1 in the loss has a gradient of zero mean and holds nothing; "
                "use k2 or k3 there, or kl_placement: reward"
            )
        if self.kl_target is not None and not self.kl_coefficient:
            raise ValueError(
                f"kl_target {self.kl_target} steers kl_coefficient, which is 0 and would stay 0; "
                "start it above 0, for example at 0.05"
            )
        if self.kl_target is None and self.differs("kl_horizon"):
            raise ValueError(
                f"kl_horizon {self.kl_horizon} has no effect without kl_target, which it is steered to; set that, or "
                "remove it"
            )
        return self
