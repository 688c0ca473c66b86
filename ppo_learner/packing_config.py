"""How sequences of different lengths share a forward pass.

It must not import torch: the command line reads it for help texts.
"""

from typing import Literal

from ppo_learner.optimizer_config import OptimizerConfig


class PackingConfig(OptimizerConfig):
    """Padded side by side, or packed into one row; for policies and critics."""

    packing: Literal["auto", "on", "off"] = "auto"
    """Put the sequences of a micro-batch one after the other instead of padding them. auto does it where attention has
    kernels for variable lengths (flash_attention_2) and the model keeps the sequences apart; without such kernels a
    packed row costs as much attention as one long sequence."""
