"""Policy losses, token by token.

They must not know models, ranks or how tokens are averaged: each returns one loss per token, and `aggregation` says
what each counts. Invariant: a token's loss depends on its own sequence alone, of which all tokens are at hand, so no
split of the batch changes it. N tokens; r_t = π/π_old is the probability ratio of token t, and π_old the proximal
policy.

Every loss takes

    logprobs: (N,) under the policy being trained; carries the gradient.
    old_logprobs: (N,) under the proximal policy.
    advantages: (N,).
    rows: (N,) which sequence each token belongs to.
    config: its bounds.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_learner.config import LearnerConfig

_LOG_RATIO_LIMIT = 20.0
"""Beyond this a probability ratio overflows float32 in the backward pass; the clip has long taken over."""


class TokenLoss(NamedTuple):
    """Loss of each token (N,), and which bound holds it (N,): −1 the lower one, 1 the upper one, 0 none."""

    losses: Tensor
    clipped: Tensor


def ppo_clip(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, rows: Tensor, config: LearnerConfig
) -> TokenLoss:
    """PPO (Schulman et al. 2017, arXiv 1707.06347), equation 7: −min(r·A, clip(r, 1 − ε_low, 1 + ε_high)·A).

    The ratio's denominator is π_old, in the paper the policy that sampled. Some surveys print the reference π_ref
    there; the paper is followed.

    Two ranges instead of one are the clip-higher of DAPO (Yu et al. 2025, arXiv 2503.14476). With `dual_clip` c the
    objective is no less than c·A where A < 0, so a ratio that exploded under bad news is held too: dual-clip PPO (Ye et
    al. 2020, arXiv 1912.09729).
    """
    return _clipped(_ratio(logprobs - old_logprobs), advantages, config)


def gspo(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, rows: Tensor, config: LearnerConfig) -> TokenLoss:
    """GSPO (Zheng et al. 2025, arXiv 2507.18071): PPO's clip on one ratio a sequence, s = (∏_t r_t)^(1/T).

    It is the paper's GSPO-token, s_t = sg[s]·π/sg[π]: the value of s, and the gradient of the token's own logprob. With
    one advantage for all tokens of a sequence, and sequence_mean, that is GSPO to the gradient.
    """
    log_ratio = logprobs - old_logprobs
    own = logprobs - logprobs.detach()  # 0, with a gradient of 1
    return _clipped(_ratio(_sequence_means(log_ratio.detach(), rows) + own), advantages, config)


def cispo(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, rows: Tensor, config: LearnerConfig) -> TokenLoss:
    """CISPO (MiniMax 2025, arXiv 2506.13585): −sg[clip(r, 1 − ε_low, 1 + ε_high)]·A·log π.

    The ratio is an importance weight, and the clip bounds the weight alone, so no token loses its gradient. ε_low = 1
    is no lower bound, as in the paper.
    """
    ratio = _ratio((logprobs - old_logprobs).detach())
    weights = ratio.clamp(1 - config.clip_ratio_low, 1 + config.clip_ratio_high)
    return TokenLoss(-weights * advantages * logprobs, torch.sign(ratio - weights))


def sapo(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, rows: Tensor, config: LearnerConfig) -> TokenLoss:
    """SAPO (Qwen team 2025, arXiv 2511.20347): −(4/τ)·σ(τ·(r − 1))·A, a soft gate in the place of the clip.

    At r = 1 the gradient is that of r·A, and it fades with the distance from there, as 4·σ·(1 − σ); τ is
    `sapo_temperature_positive` where A > 0 and `sapo_temperature_negative` elsewhere.
    """
    ratio = _ratio(logprobs - old_logprobs)
    temperature = torch.full_like(advantages, config.sapo_temperature_negative)
    temperature = temperature.masked_fill(advantages > 0, config.sapo_temperature_positive)
    gate = torch.sigmoid(temperature * (ratio - 1))
    return TokenLoss(-4 / temperature * gate * advantages, torch.zeros_like(ratio))


def reinforce(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, rows: Tensor, config: LearnerConfig
) -> TokenLoss:
    """REINFORCE with a baseline (Williams 1992): −A·log π.

    Its gradient is that of the expected reward only if π sampled the tokens. Of an older policy's samples it becomes so
    by the importance weight ∏π/μ of the whole sequence: exactly with `sequence_tis` below its cap, in part with others.
    The weight is of the policy at the step's start, so what moves in a step's further updates stays uncorrected.
    """
    return TokenLoss(-advantages * logprobs, torch.zeros_like(logprobs))


def _clipped(ratio: Tensor, advantages: Tensor, config: LearnerConfig) -> TokenLoss:
    """−min(r·A, clip(r)·A), and of that at most −c·A where A < 0."""
    free = ratio * advantages
    objective = torch.minimum(free, ratio.clamp(1 - config.clip_ratio_low, 1 + config.clip_ratio_high) * advantages)
    if config.dual_clip is not None:
        floor = torch.where(advantages < 0, config.dual_clip * advantages, -torch.inf)
        objective = torch.maximum(objective, floor)
    held = objective.detach() != free.detach()
    return TokenLoss(-objective, held * torch.sign(ratio.detach() - 1))


def _ratio(log_ratio: Tensor) -> Tensor:
    return torch.exp(log_ratio.clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT))


def _sequence_means(values: Tensor, rows: Tensor) -> Tensor:
    """(N,) the mean of each token's sequence. Sums in float64, where the order of additions leaves no trace."""
    means = torch.bincount(rows, weights=values.double()) / torch.bincount(rows).clamp(min=1)
    return means[rows].to(values.dtype)


POLICY_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, LearnerConfig], TokenLoss]] = {
    "ppo_clip": ppo_clip,
    "gspo": gspo,
    "cispo": cispo,
    "sapo": sapo,
    "reinforce": reinforce,
}
