"""The critic's loss, token by token.

It must not know models, ranks or how tokens are averaged. N tokens.
"""

import torch
from torch import Tensor

from ppo_learner.config import LearnerConfig
from ppo_learner.losses import TokenLoss


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, config: LearnerConfig) -> TokenLoss:
    """The worse of free and clipped: max(h(V − R), h(V_old + clip(V − V_old, ±ε) − R)), as PPO's authors implement it.

    h is half the square, h(e) = ½e², or with `value_huber_delta` δ Huber's function (1964), which is δ·(|e| − ½δ)
    beyond ±δ. ε is `value_clip`; None leaves h(V − R).

    Args:
        values: (N,) of the critic being trained; carries the gradient.
        old_values: (N,) of the critic before this step.
        returns: (N,) targets.
    """
    free = _error(values - returns, config.value_huber_delta)
    if config.value_clip is None:
        return TokenLoss(free, torch.zeros_like(values))
    moved = values - old_values
    held = _error(old_values + moved.clamp(-config.value_clip, config.value_clip) - returns, config.value_huber_delta)
    clipped = (moved.detach().abs() > config.value_clip) & (held.detach() > free.detach())
    return TokenLoss(torch.maximum(free, held), clipped * torch.sign(moved.detach()))


def _error(difference: Tensor, huber_delta: float | None) -> Tensor:
    if huber_delta is None:
        return 0.5 * difference.square()
    size = difference.abs()
    return torch.where(size <= huber_delta, 0.5 * difference.square(), huber_delta * (size - 0.5 * huber_delta))
