"""Settings of advantages: discounting, and what they are normalised by.

It must not import torch.
"""

from pydantic import Field

from services.contracts.settings import Section


class AdvantageConfig(Section):
    """Discount, GAE, group deviation, whitening."""

    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount per token of future rewards."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """GAE's trade of bias (0) for variance (1)."""
    whiten_advantages: bool = False
    """Shift and scale advantages to mean 0, deviation 1 over the batch; ppo does."""
    normalise_group_std: bool = True
    """Divide GRPO's advantages by the group's standard deviation; off, hard and easy prompts weigh by their spread."""
