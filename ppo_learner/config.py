"""The section `learner` of a run: every group of settings, each from the file beside its owner.

It must not import torch: the command line reads it for help texts. Invariant: a section that was built names an
algorithm that exists and combines only settings that have an effect together.
"""

from typing import Self

from pydantic import model_validator

from ppo_learner.advantage_config import AdvantageConfig
from ppo_learner.critic_config import CriticConfig
from ppo_learner.kl_config import KlConfig
from ppo_learner.moe_config import MoeConfig
from ppo_learner.off_policy_config import OffPolicyConfig
from ppo_learner.overlong_config import OverlongConfig
from ppo_learner.packing_config import PackingConfig
from ppo_learner.policy_loss_config import PolicyLossConfig
from ppo_learner.reward_weights_config import RewardWeightsConfig

_OF_TOTALS = ("overlong_tokens", "length_penalty", "total_includes_steps")
"""Settings that change completions' totals and nothing else."""


class LearnerConfig(
    KlConfig,
    CriticConfig,
    AdvantageConfig,
    RewardWeightsConfig,
    OverlongConfig,
    OffPolicyConfig,
    PolicyLossConfig,
    MoeConfig,
    PackingConfig,
):
    """How the policy learns from scored rollouts; here are the rules that span groups."""

    def for_run(self, *, max_staleness: int, max_completion_tokens: int) -> Self:
        """These settings with the defaults resolved that other sections decide.

        A step with a single update starts at the recomputed policy, so nothing would hold it back from samples that
        an older policy drew; against the sampler the same loss does.
        """
        stale = max_staleness > 0 and self.has_ratio and self.importance_correction == "none"
        resolved: dict[str, object] = {"proximal": self.proximal or ("sampler" if stale else "recomputed")}
        if self.loss_aggregation == "constant_length":
            resolved["loss_length"] = self.loss_length or max_completion_tokens
        return self.for_length(max_completion_tokens).model_copy(update=resolved)

    @model_validator(mode="after")
    def _totals_count_where_they_are_changed(self) -> Self:
        for name in () if self.total_weight else _OF_TOTALS:
            if self.differs(name):
                raise ValueError(
                    f"{name} {getattr(self, name)} has no effect with total_weight 0 (algorithm {self.algorithm}): it "
                    "changes totals, and only steps count; remove it, or raise total_weight"
                )
        return self

    @model_validator(mode="after")
    def _kl_fits_steps(self) -> Self:
        if self.normalises_steps and self.kl_coefficient and self.kl_placement == "reward":
            raise ValueError(
                f"{self.algorithm} normalises the rewards of steps, which a KL penalty per token is none of; put it "
                "into the loss: kl_placement: loss with kl_estimator: k3"
            )
        return self
