"""What a rank keeps outside its device's memory.

It must not import torch: the command line reads it for help texts. Invariant: only what is sharded is moved out.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from services.contracts.settings import Section


class MemoryConfig(Section):
    """Sharding over the ranks, and offload to the memory of their machines."""

    zero_stage: int = Field(default=0, ge=0, le=3)
    """What DeepSpeed shards over the ranks: 0 nothing, 1 optimizer states, 2 also gradients, 3 also weights."""
    offload: Literal["none", "optimizer", "parameters_and_optimizer"] = "none"
    """What lies in the machine's memory instead of the GPU's, where it is also stepped: optimizer states (from ZeRO
    stage 1 on), or weights as well (stage 3), of which the GPU then holds those of a few layers at a time. Slower."""

    @model_validator(mode="after")
    def _offload_fits(self) -> Self:
        needed = {"none": 0, "optimizer": 1, "parameters_and_optimizer": 3}[self.offload]
        if self.zero_stage < needed:
            raise ValueError(
                f"offload: {self.offload} moves out what ZeRO shards from stage {needed} on, and zero_stage is "
                f"{self.zero_stage}; set zero_stage: {needed}"
            )
        return self
