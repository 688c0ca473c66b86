"""Settings of the learner: algorithm, optimisation, KL control, parallelism.

It must not import torch: the command line reads it for help texts. Invariant: a section that was built names an
algorithm that exists and combines only settings that have an effect together.
"""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from ppo_learner.algorithms import ALGORITHMS, Algorithm
from services.contracts.settings import Section

_IMPORTANCE_BOUNDS = {
    "importance_cap": ("token_tis", "sequence_tis", "sequence_mis"),
    "importance_low": ("icepop",),
    "importance_high": ("icepop",),
}


class OptimizerConfig(Section):
    """What supervised and reinforcement learning share: processes, AdamW, schedule, micro-batches, memory."""

    num_ranks: int = Field(default=1, ge=1)
    """Learner processes; the batch and, from ZeRO stage 1 on, optimizer states are split over them."""
    zero_stage: int = Field(default=0, ge=0, le=3)
    """What DeepSpeed shards over the ranks: 0 nothing, 1 optimizer states, 2 also gradients, 3 also weights."""
    lr: float = Field(default=1e-6, gt=0)
    """Peak learning rate of the policy."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_gradient_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm; 0 leaves them as they are."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after warm-up; linear and cosine end at 0 with the run."""
    warmup_steps: int = Field(default=0, ge=0)
    """Learner steps over which the learning rate rises linearly to its peak."""
    max_tokens_per_micro_batch: int = Field(default=4096, ge=1)
    """Most tokens, padding included, in one forward and backward pass of a rank; lower it when memory runs out."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory for about a third more time."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation of the model; flash_attention_2 needs a GPU and its own package."""
    max_nonfinite_steps: int = Field(default=3, ge=1)
    """Updates in a row with a NaN or infinite gradient, each skipped, after which the run stops."""
    collective_timeout_s: float = Field(default=600.0, gt=0)
    """Longest wait of one rank for the others, in seconds; then the learner fails."""

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), not {betas}; AdamW's usual pair is (0.9, 0.999)")
        return betas


class LearnerConfig(OptimizerConfig):
    """How the policy learns from scored rollouts."""

    algorithm: str = "ppo"
    """Name of the algorithm: ppo (GAE and a critic), grpo (group mean and deviation), grpo_process (the same of steps,
    each token by the steps after it) or rloo (leave-one-out)."""
    num_epochs: int = Field(default=1, ge=1)
    """Passes over each step's rollouts."""
    num_minibatches: int = Field(default=1, ge=1)
    """Parts into which each pass is split; each part is one optimizer step."""
    loss_aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
    """Average of the loss over all trained tokens, or over each completion first and then over completions."""
    proximal: Literal["recomputed", "sampler", "interpolated"] | None = None
    """Policy that PPO's ratio compares with: the learner's at the step's start (recomputed), the one that sampled, or a
    point between that and the trained one by each token's staleness (interpolated), which saves a forward pass. By
    default recomputed; where there is staleness, no importance_correction and a clip, the one that sampled."""
    importance_correction: Literal["none", "token_tis", "sequence_tis", "sequence_mis", "icepop"] = "none"
    """Weight on each token's policy loss by the proximal policy's probability over the sampler's: truncated per token
    or per completion (tis), completions masked above the cap (mis), or tokens masked outside a range (icepop)."""
    importance_cap: float = Field(default=2.0, ge=1)
    """Largest importance weight of token_tis, sequence_tis and sequence_mis; larger is less biased and noisier."""
    importance_low: float = Field(default=0.5, gt=0, lt=1)
    """icepop masks tokens whose probability ratio lies below this."""
    importance_high: float = Field(default=5.0, gt=1)
    """icepop masks tokens whose probability ratio lies above this."""

    clip_ratio_low: float = Field(default=0.2, gt=0, lt=1)
    """PPO's clip range below 1: the probability ratio stops mattering under 1 - this."""
    clip_ratio_high: float = Field(default=0.2, gt=0)
    """PPO's clip range above 1; larger than clip_ratio_low, it leaves rare tokens more room to grow."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus; positive values keep the policy from narrowing."""
    whiten_advantages: bool | None = None
    """Shift and scale advantages to mean 0, deviation 1 over the batch; by default only where there is a critic."""
    normalise_group_std: bool = True
    """Divide GRPO's advantages by the group's standard deviation; off, hard and easy prompts weigh by their spread."""

    total_weight: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Factor on each completion's total reward, which stands on its last token; by default 1, with grpo_process 0."""
    step_weight: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Factor on the rewards of its steps, each of which stands on the step's last token; by default 0, with
    grpo_process 1. Above 0 the reward must give steps."""
    total_includes_steps: bool = False
    """The total already contains the sum of the steps, which is then taken off it, so that nothing counts twice."""

    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount per token of future rewards."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """GAE's trade of bias (0) for variance (1)."""
    critic: Literal["model", "value_head"] = "model"
    """Where values come from: a transformer of their own, or a head on the policy's last hidden states."""
    critic_path: str | None = None
    """Folder or hub name of the critic's initial weights; the policy's where it is not given."""
    critic_lr: float = Field(default=5e-6, gt=0)
    """Peak learning rate of the critic, or of the value head."""
    critic_warmup_steps: int = Field(default=0, ge=0)
    """First steps in which only the critic learns; needs critic: model."""
    value_clip: float | None = Field(default=0.2, gt=0)
    """Values may move this far from their old ones within a step before the loss stops pulling; None: no clip."""
    value_coefficient: float = Field(default=0.5, gt=0)
    """Weight of the value loss beside the policy loss; with critic: model it scales only the critic's gradient."""

    kl_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the KL penalty towards the initial policy; 0 loads no reference model."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of that KL per token: k1 unbiased, k2 low variance and biased, k3 unbiased and never negative."""
    kl_placement: Literal["reward", "loss"] = "reward"
    """Subtract the penalty from the rewards before advantages are computed, or add it to the loss."""
    kl_target: float | None = Field(default=None, gt=0)
    """KL per completion, in nats, that the coefficient is steered to; None keeps the coefficient fixed."""
    kl_horizon: int = Field(default=10_000, ge=1)
    """Completions over which an adaptive coefficient responds; smaller is quicker."""

    @property
    def parts(self) -> Algorithm:
        """The chosen algorithm's advantage, loss and need of a critic."""
        return ALGORITHMS[self.algorithm]

    @property
    def clips(self) -> bool:
        """Whether the policy loss has a ratio that is clipped."""
        return self.parts.loss != "reinforce"

    def for_staleness(self, max_staleness: int) -> Self:
        """These settings with the default of `proximal` resolved.

        A step with a single update starts at the recomputed policy, so nothing would hold it back from samples that
        an older policy drew; against the sampler the same clip does.
        """
        stale = max_staleness > 0 and self.clips and self.importance_correction == "none"
        default: Literal["recomputed", "sampler"] = "sampler" if stale else "recomputed"
        return self.model_copy(update={"proximal": self.proximal or default})

    @property
    def whitens(self) -> bool:
        """Whether advantages are whitened, the default resolved."""
        return self.parts.needs_critic if self.whiten_advantages is None else self.whiten_advantages

    @property
    def reward_weights(self) -> tuple[float, float]:
        """The factors on totals and on steps, the defaults resolved."""
        defaults = {"total": (1.0, 0.0), "steps": (0.0, 1.0)}[self.parts.learns_from]
        given = self.total_weight, self.step_weight
        total, steps = (default if own is None else own for own, default in zip(given, defaults, strict=True))
        return total, steps

    @property
    def uses_steps(self) -> bool:
        """Whether the rewards of steps count."""
        return self.reward_weights[1] > 0

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps in one learner step."""
        return self.num_epochs * self.num_minibatches

    @field_validator("algorithm")
    @classmethod
    def _algorithm_exists(cls, name: str) -> str:
        if name not in ALGORITHMS:
            raise ValueError(f"algorithm {name!r} does not exist; choose one of {', '.join(ALGORITHMS)}")
        return name

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
        return self

    @model_validator(mode="after")
    def _reward_weights_fit(self) -> Self:
        if self.parts.learns_from == "steps" and not self.uses_steps:
            raise ValueError(f"step_weight 0 leaves nothing of {self.algorithm}; use algorithm grpo, or raise it")
        if not any(self.reward_weights):
            raise ValueError("total_weight and step_weight are both 0, which leaves nothing to learn from; raise one")
        if self.total_includes_steps and not self.uses_steps:
            raise ValueError("total_includes_steps has no effect with step_weight 0; remove it, or raise step_weight")
        if self.parts.learns_from == "steps" and self.kl_coefficient and self.kl_placement == "reward":
            raise ValueError(
                f"{self.algorithm} normalises the rewards of steps, which a KL penalty per token is none of; put it "
                "into the loss: kl_placement: loss with kl_estimator: k3"
            )
        return self

    @model_validator(mode="after")
    def _proximal_fits(self) -> Self:
        if not self.clips and self.proximal not in (None, "recomputed"):
            raise ValueError(
                f"proximal {self.proximal} anchors a clip, and algorithm {self.algorithm} has none; use "
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
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default and self.importance_correction not in corrections:
                raise ValueError(
                    f"{name} {value} has no effect with importance_correction {self.importance_correction}; "
                    f"remove it, or use {' or '.join(corrections)}"
                )
        return self

    @model_validator(mode="after")
    def _critic_fits(self) -> Self:
        if self.critic_path is not None and (self.critic != "model" or not self.parts.needs_critic):
            raise ValueError(
                f"critic_path {self.critic_path!r} has no effect with algorithm {self.algorithm} and critic "
                f"{self.critic}; remove it, or use ppo with critic: model"
            )
        if self.critic_warmup_steps and (self.critic != "model" or not self.parts.needs_critic):
            raise ValueError(
                f"critic_warmup_steps {self.critic_warmup_steps} needs a critic apart from the policy; "
                "set it to 0, or use ppo with critic: model"
            )
        return self


class SupervisedConfig(OptimizerConfig):
    """How the policy learns from demonstrations."""

    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate of the policy."""
