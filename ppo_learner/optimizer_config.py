"""Settings that every kind of training shares: processes, AdamW, schedule, micro-batches, memory.

It must not import torch: the command line reads it for help texts, as it does every `*_config.py`. Invariant: it knows
no loss and no algorithm.
"""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from ppo_learner.lora_config import LoraConfig
from ppo_learner.memory_config import MemoryConfig


class OptimizerConfig(MemoryConfig):
    """Processes, AdamW and its schedule, micro-batches, memory."""

    num_ranks: int = Field(default=1, ge=1)
    """Learner processes; the batch and, from ZeRO stage 1 on, optimizer states are split over them."""
    sequence_parallel: int = Field(default=1, ge=1)
    """Ranks that share each sequence, for sequences whose activations are too many for one: each holds a part of its
    tokens, and in attention some of its heads (Ulysses). It must divide num_ranks and the heads."""
    optimizer: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    """Rule of the steps: adamw; adamw_8bit, whose moments take a quarter of the memory and which needs the package
    bitsandbytes; or muon, which orthogonalises the steps of linear layers, of AdamW's size, and is AdamW elsewhere."""
    lr: float = Field(default=1e-6, gt=0)
    """Peak learning rate of the policy."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Keep a moving average of the weights, of which each learner step leaves this much; it is exported beside them."""
    lora: LoraConfig | None = None
    """Train low-rank adapters in place of the weights; all weights where it is not given."""
    max_gradient_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm; 0 leaves them as they are, which muon always does."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after warm-up; linear and cosine end at 0 with the run."""
    warmup_steps: int = Field(default=0, ge=0)
    """Learner steps over which the learning rate rises linearly to its peak."""
    max_tokens_per_micro_batch: int = Field(default=4096, ge=1)
    """Most tokens, with any padding, in one forward and backward pass of a rank; lower it when memory runs out."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory for about a third more time."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation of the model; flash_attention_2 needs a GPU and its own package."""
    max_nonfinite_steps: int = Field(default=3, ge=1)
    """Updates in a row with a NaN or infinite gradient, each skipped, after which the run stops."""
    collective_timeout_s: float = Field(default=600.0, gt=0)
    """Longest wait of one rank for the others, in seconds; then the learner fails."""

    @property
    def max_tokens_per_pass(self) -> int:
        """Most tokens in one pass of all ranks that share it."""
        return self.sequence_parallel * self.max_tokens_per_micro_batch

    @property
    def clipping(self) -> float:
        """Norm that gradients are scaled down to; 0 for none: Muon's steps do not depend on it."""
        return 0.0 if self.optimizer == "muon" else self.max_gradient_norm

    @property
    def packages(self) -> dict[str, str]:
        """Packages that the settings need beside the common ones, and the setting that needs each."""
        needs = {
            "learner.lora.quantise": "bitsandbytes" if self.lora and self.lora.quantise else None,
            "learner.optimizer": "bitsandbytes" if self.optimizer == "adamw_8bit" else None,
        }
        return {package: setting for setting, package in needs.items() if package}

    @model_validator(mode="after")
    def _ranks_share_sequences(self) -> Self:
        if self.num_ranks % self.sequence_parallel:
            raise ValueError(
                f"sequence_parallel {self.sequence_parallel} must divide num_ranks {self.num_ranks}, since as many "
                "ranks share each sequence"
            )
        if self.sequence_parallel > 1 and self.attention == "eager":
            raise ValueError(
                f"sequence_parallel {self.sequence_parallel} does not go with attention: eager, which writes out what "
                "long sequences have no room for; use sdpa or flash_attention_2"
            )
        return self

    @model_validator(mode="after")
    def _quantised_weights_stay_whole(self) -> Self:
        if self.zero_stage == 3 and self.lora and self.lora.quantise:
            raise ValueError(
                f"lora.quantise {self.lora.quantise} does not go with zero_stage 3, which would cut packed weights up; "
                "use zero_stage 2, where each rank holds all of them"
            )
        return self

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), not {betas}; AdamW's usual pair is (0.9, 0.999)")
        return betas

    @model_validator(mode="after")
    def _offload_fits_optimizer(self) -> Self:
        if self.offload != "none" and self.optimizer != "adamw":
            raise ValueError(
                f"offload: {self.offload} steps in the machine's memory, where optimizer: {self.optimizer} does not "
                "run; use optimizer: adamw, or offload: none"
            )
        return self
