"""Settings of the learner when it trains a policy on preferences.

It must not import torch: the command line reads it for help texts. Invariant: a section that was built names an
algorithm that exists, and changes only settings that have an effect with it.
"""

from typing import Self

from pydantic import Field, field_validator, model_validator

from ppo_learner.moe_config import MoeConfig
from ppo_learner.packing_config import PackingConfig
from ppo_learner.preference_algorithms import PREFERENCE_ALGORITHMS, PreferenceAlgorithm

_OF_SOME_ALGORITHMS = (
    "label_smoothing",
    "target_margin",
    "odds_ratio_weight",
    "nll_weight",
    "desirable_weight",
    "undesirable_weight",
)


class PreferenceConfig(MoeConfig, PackingConfig):
    """How the policy learns from preferences."""

    algorithm: str = "dpo"
    """Name of the algorithm: dpo, cdpo, robust_dpo, ipo, simpo and orpo learn from pairs, kto from completions with a
    label. simpo and orpo need no reference logprobs."""
    beta: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """How closely the policy is held to its initial weights (dpo, cdpo, robust_dpo, ipo, where it is the paper's τ, and
    kto), or the scale of simpo's rewards; by default 0.1, with simpo 2. orpo has none."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=0.5)
    """cdpo and robust_dpo: share of the pairs that are taken to be the wrong way round."""
    target_margin: float = Field(default=1.0, ge=0)
    """simpo: the margin γ by which the chosen completion's reward is to be ahead."""
    odds_ratio_weight: float = Field(default=0.1, gt=0)
    """orpo: λ, the weight of the odds ratio beside the likelihood of the chosen completion."""
    nll_weight: float = Field(default=0.0, ge=0)
    """Weight of −log π(chosen) per token beside the loss of a pair, which keeps the chosen completion likely (RPO)."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """kto: λ_D, the weight of desirable completions; together the two weights make up for labels of unequal number."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """kto: λ_U, the weight of undesirable completions."""

    @property
    def parts(self) -> PreferenceAlgorithm:
        """The chosen algorithm's form of examples, and whether it needs a reference."""
        return PREFERENCE_ALGORITHMS[self.algorithm]

    @property
    def scale(self) -> float:
        """β, the default resolved; 1 where it has no effect."""
        return self.beta or self.parts.beta or 1.0

    @field_validator("algorithm")
    @classmethod
    def _algorithm_exists(cls, name: str) -> str:
        if name not in PREFERENCE_ALGORITHMS:
            raise ValueError(f"algorithm {name!r} does not exist; choose one of {', '.join(PREFERENCE_ALGORITHMS)}")
        return name

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if self.beta is not None and self.parts.beta is None:
            raise ValueError(f"beta {self.beta} has no effect with algorithm {self.algorithm}; remove it")
        for name in _OF_SOME_ALGORITHMS:
            if name not in self.parts.settings and self.differs(name):
                users = [other for other, parts in PREFERENCE_ALGORITHMS.items() if name in parts.settings]
                raise ValueError(
                    f"{name} {getattr(self, name)} has no effect with algorithm {self.algorithm}; remove it, or use "
                    f"{' or '.join(users)}"
                )
        return self
