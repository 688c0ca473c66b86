"""Policy and value losses, token by token.

They must not know models, ranks or how tokens are averaged: each returns one loss per token, and `token_weights` says
what each counts. Invariant: the weights of an optimizer step sum to 1 over all ranks and micro-batches, so that no
split of the batch changes the loss. N is the number of sampled tokens at hand.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_learner.config import LearnerConfig

_LOG_RATIO_LIMIT = 20.0
"""Beyond this a probability ratio overflows float32 in the backward pass; the clip has long taken over."""


class TokenLoss(NamedTuple):
    """Loss of each token (N,), and where the clip holds its gradient back (N,)."""

    losses: Tensor
    clipped: Tensor


def ppo_clip_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_ratio_low: float, clip_ratio_high: float
) -> TokenLoss:
    """PPO (Schulman et al. 2017, arXiv 1707.06347): −min(r·A, clip(r, 1 − ε_low, 1 + ε_high)·A), r = π/π_old.

    Two ranges instead of one are the clip-higher of DAPO (Yu et al. 2025, arXiv 2503.14476).

    Args:
        logprobs: (N,) under the policy being trained; carries the gradient.
        old_logprobs: (N,) under the proximal policy, which anchors the clip.
        advantages: (N,).
    """
    ratio = torch.exp((logprobs - old_logprobs).clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT))
    free = ratio * advantages
    held = ratio.clamp(1 - clip_ratio_low, 1 + clip_ratio_high) * advantages
    return TokenLoss(-torch.minimum(free, held), held.detach() < free.detach())


def reinforce_loss(logprobs: Tensor, advantages: Tensor) -> TokenLoss:
    """REINFORCE with a baseline (Williams 1992): −A·log π.

    Its gradient is that of the expected reward only if π sampled the tokens. Of an older policy's samples it becomes so
    by the importance weight ∏π/μ of the whole sequence: exactly with `sequence_tis` below its cap, in part with others.
    The weight is of the policy at the step's start, so what moves in a step's further updates stays uncorrected.

    Args:
        logprobs: (N,) under the policy being trained; carries the gradient.
        advantages: (N,), the baseline already subtracted.
    """
    return TokenLoss(-advantages * logprobs, torch.zeros_like(logprobs, dtype=torch.bool))


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None) -> TokenLoss:
    """Half squared error, the worse of free and clipped: ½·max((V − R)², (V_old + clip(V − V_old, ±ε) − R)²).

    Args:
        values: (N,) of the critic being trained; carries the gradient.
        old_values: (N,) of the critic before this step.
        returns: (N,) targets.
        clip: ε; None leaves the plain squared error.
    """
    free = (values - returns).square()
    if clip is None:
        return TokenLoss(0.5 * free, torch.zeros_like(values, dtype=torch.bool))
    moved = values - old_values
    held = (old_values + moved.clamp(-clip, clip) - returns).square()
    return TokenLoss(0.5 * torch.maximum(free, held), (moved.detach().abs() > clip) & (held.detach() > free.detach()))


def token_weights(counts: Tensor, aggregation: str) -> Tensor:
    """What each sampled token of an optimizer step counts in its loss.

    Args:
        counts: (B,) sampled tokens of each sequence of the step, over all ranks.
        aggregation: token_mean weighs all tokens alike; sequence_mean weighs all completions alike.

    Returns:
        (B,) the weight of every token of that sequence; the weights of all tokens sum to 1.
    """
    if aggregation == "token_mean":
        return torch.ones_like(counts, dtype=torch.float64) / counts.sum().clamp(min=1)
    return 1.0 / (counts.clamp(min=1) * (counts > 0).sum().clamp(min=1)).double()


def _ppo_clip(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, config: LearnerConfig) -> TokenLoss:
    return ppo_clip_loss(
        logprobs,
        old_logprobs,
        advantages,
        clip_ratio_low=config.clip_ratio_low,
        clip_ratio_high=config.clip_ratio_high,
    )


def _reinforce(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, config: LearnerConfig) -> TokenLoss:
    return reinforce_loss(logprobs, advantages)


POLICY_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, LearnerConfig], TokenLoss]] = {
    "ppo_clip": _ppo_clip,
    "reinforce": _reinforce,
}
