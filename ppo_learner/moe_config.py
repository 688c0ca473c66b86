"""Settings of models with experts.

It must not import torch.
"""

from pydantic import Field

from services.contracts.settings import Section


class MoeConfig(Section):
    """How a mixture of experts is kept balanced."""

    router_loss_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the loss that has routers spread tokens evenly over experts; only for models that have some."""
