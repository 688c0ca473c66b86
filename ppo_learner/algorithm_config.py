"""The choice of an algorithm, and the settings that come with it.

It must not import torch. Invariant: a section that was built names an algorithm that exists, and has the settings that
its paper prescribes wherever the user gave none.
"""

from collections.abc import Mapping

from pydantic import field_validator, model_validator

from ppo_learner.algorithms import ALGORITHMS, Algorithm
from services.contracts.settings import Section


class AlgorithmConfig(Section):
    """Which algorithm; the base of every group of settings whose rules depend on it."""

    algorithm: str = "ppo"
    """Name of the algorithm: ppo (GAE and a critic); grpo, dr_grpo, dapo, gspo, cispo or sapo (normalised over the
    group, each with a loss of its own); grpo_process (the same of steps, each token by the steps after it); rloo
    (leave-one-out); reinforce, reinforce_pp or reinforce_pp_baseline (returns, normalised over the batch in the latter
    two); remax (the greedy answer as baseline). It brings defaults of its own for other settings."""

    @property
    def parts(self) -> Algorithm:
        """The chosen algorithm's advantage, loss and need of a critic."""
        return ALGORITHMS[self.algorithm]

    @property
    def has_ratio(self) -> bool:
        """Whether the policy loss compares the policy with a proximal one."""
        return self.parts.loss != "reinforce"

    @model_validator(mode="before")
    @classmethod
    def _algorithm_prescribes(cls, given: object) -> object:
        """Put the algorithm's own settings under those that were given."""
        if not isinstance(given, Mapping):
            return given
        name = given.get("algorithm", cls.model_fields["algorithm"].default)
        return {**ALGORITHMS[name].settings, **given} if isinstance(name, str) and name in ALGORITHMS else given

    @field_validator("algorithm")
    @classmethod
    def _algorithm_exists(cls, name: str) -> str:
        if name not in ALGORITHMS:
            raise ValueError(f"algorithm {name!r} does not exist; choose one of {', '.join(ALGORITHMS)}")
        return name
