"""Settings for samples that an older policy drew: what the ratio compares with, and how samples are weighed.

It must not import torch. Invariant: a section that was built gives only bounds that its correction reads.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from ppo_learner.algorithm_config import AlgorithmConfig

_IMPORTANCE_BOUNDS = {
    "importance_cap": ("token_tis", "sequence_tis", "sequence_mis"),
    "importance_low": ("icepop",),
    "importance_high": ("icepop",),
}


class OffPolicyConfig(AlgorithmConfig):
    """The proximal policy (decoupled PPO) and the correction from the sampler's policy to it."""

    proximal: Literal["recomputed", "sampler", "interpolated"] | None = None
    """Policy that the ratio compares with, apart from the one that sampled (decoupled PPO): the learner's at the step's
    start (recomputed), the sampler itself, or a point between that and the trained one by each token's staleness
    (interpolated), which saves a forward pass. By default recomputed; where there is staleness, a ratio and no
    importance_correction, the sampler."""
    importance_correction: Literal["none", "token_tis", "sequence_tis", "sequence_mis", "icepop"] = "none"
    """Weight on each token's policy loss by the proximal policy's probability over the sampler's: truncated per token
    or per completion (tis), completions masked above the cap (mis), or tokens masked outside a range (icepop)."""
    importance_cap: float = Field(default=2.0, ge=1)
    """Largest importance weight of token_tis, sequence_tis and sequence_mis; larger is less biased and noisier."""
    importance_low: float = Field(default=0.5, gt=0, lt=1)
    """icepop masks tokens whose probability ratio lies below this."""
    importance_high: float = Field(default=5.0, gt=1)
    """icepop masks tokens whose probability ratio lies above this."""

    @model_validator(mode="after")
    def _proximal_fits(self) -> Self:
        if not self.has_ratio and self.proximal not in (None, "recomputed"):
            raise ValueError(
                f"proximal {self.proximal} anchors a ratio, and algorithm {self.algorithm} has none; use "
                "proximal: recomputed, and importance_correction against staleness"
            )
        if self.proximal == "sampler" and self.importance_correction != "none":
            raise ValueError(
                f"importance_correction {self.importance_correction} has no effect with proximal: sampler, whose ratio "
                "to the sampler is 1; use proximal: recomputed or interpolated, or importance_correction: none"
            )
        if self.proximal == "interpolated" and self.importance_correction == "none":
            raise ValueError(
                "proximal: interpolated leaves out the part of the ratio from the sampler to it; "
                "use it with an importance_correction, for example token_tis"
            )
        return self

    @model_validator(mode="after")
    def _importance_bounds_fit(self) -> Self:
        for name, corrections in _IMPORTANCE_BOUNDS.items():
            if self.differs(name) and self.importance_correction not in corrections:
                raise ValueError(
                    f"{name} {getattr(self, name)} has no effect with importance_correction "
                    f"{self.importance_correction}; remove it, or use {' or '.join(corrections)}"
                )
        return self
