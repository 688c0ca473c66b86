"""Settings of low-rank adapters.

It must not import torch or peft: the command line reads it for help texts.
"""

from typing import Literal

from pydantic import Field, field_validator

from services.contracts.settings import Section


class LoraConfig(Section):
    """Which small matrices are trained in place of the model's weights."""

    rank: int = Field(default=16, ge=1)
    """Width of the adapters: a weight of m × n gets rank · (m + n) trained numbers."""
    alpha: float = Field(default=32.0, gt=0)
    """An adapter's product counts alpha / rank."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which matrices get one: all linear layers below the head, or those whose names end so: [q_proj, v_proj]."""
    quantise: Literal["4bit"] | None = None
    """Hold the frozen weights of policy and critic in 4 bits (NF4, as in QLoRA); needs the package bitsandbytes."""

    @field_validator("targets")
    @classmethod
    def _targets_are_named(cls, targets: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not targets:
            raise ValueError("targets is empty, which would train nothing; name linear layers, or use all-linear")
        return targets
