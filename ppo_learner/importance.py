"""How samples of the behaviour policy stand for those of the proximal one: a weight on each token's policy loss.

It must not know networks, losses or ranks. Invariants: a weight depends on its own sequence alone, so no split of the
batch changes it; it carries no gradient; where the two policies agree it is exactly 1. ρ_t = π_prox/μ is the ratio of
token t, μ the policy that sampled it. N tokens, whole sequences of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_learner.config import LearnerConfig

_LOG_RATIO_LIMIT = 20.0
"""Ratios end at e^±20, so that a product over a long sequence stays finite, and so do the squares of an effective
sample size."""


class ImportanceWeights(NamedTuple):
    """Factor of each token's loss (N,), and where it is not its ratio but truncated or masked (N,)."""

    weights: Tensor
    clipped: Tensor


def no_correction(log_ratio: Tensor, rows: Tensor, config: LearnerConfig) -> ImportanceWeights:
    """w_t = 1: the samples count as the proximal policy's own."""
    return ImportanceWeights(torch.ones_like(log_ratio), torch.zeros_like(log_ratio, dtype=torch.bool))


def token_tis(log_ratio: Tensor, rows: Tensor, config: LearnerConfig) -> ImportanceWeights:
    """w_t = min(ρ_t, C): token-level truncated importance sampling (Yao et al. 2025, "Your efficient RL framework
    secretly brings you off-policy RL training").

    Low variance at any length; biased, since it corrects the token's distribution and not that of its prefix.

    Args:
        log_ratio: (N,) log ρ.
        rows: (N,) which sequence each token belongs to.
        config: C is `importance_cap`.
    """
    ratio = bounded_ratio(log_ratio)
    return ImportanceWeights(ratio.clamp(max=config.importance_cap), ratio > config.importance_cap)


def sequence_tis(log_ratio: Tensor, rows: Tensor, config: LearnerConfig) -> ImportanceWeights:
    """w_t = min(∏_s ρ_s, C), the product over the token's whole sequence: sequence-level truncated importance sampling
    (Liu, Li et al. 2025, "When speed kills stability"; truncation: Ionides 2008).

    Without the cap, REINFORCE with these weights is unbiased; the variance grows with the length.

    Args:
        log_ratio: (N,) log ρ.
        rows: (N,) which sequence each token belongs to.
        config: C is `importance_cap`.
    """
    ratio = _sequence_ratio(log_ratio, rows)
    return ImportanceWeights(ratio.clamp(max=config.importance_cap), ratio > config.importance_cap)


def sequence_mis(log_ratio: Tensor, rows: Tensor, config: LearnerConfig) -> ImportanceWeights:
    """w_t = ∏_s ρ_s where that is at most C, else 0: sequence-level masked importance sampling (Liu, Li et al. 2025,
    "When speed kills stability"). It distrusts the sequences that `sequence_tis` would still train on at weight C.

    Args:
        log_ratio: (N,) log ρ.
        rows: (N,) which sequence each token belongs to.
        config: C is `importance_cap`.
    """
    ratio = _sequence_ratio(log_ratio, rows)
    outside = ratio > config.importance_cap
    return ImportanceWeights(ratio.masked_fill(outside, 0.0), outside)


def icepop(log_ratio: Tensor, rows: Tensor, config: LearnerConfig) -> ImportanceWeights:
    """w_t = ρ_t where α ≤ ρ_t ≤ β, else 0: IcePop (Ling team 2025, arXiv 2510.18855). A masked token still counts where
    losses are averaged, as in the paper.

    Args:
        log_ratio: (N,) log ρ.
        rows: (N,) which sequence each token belongs to.
        config: α is `importance_low`, β `importance_high`.
    """
    ratio = bounded_ratio(log_ratio)
    outside = (ratio < config.importance_low) | (ratio > config.importance_high)
    return ImportanceWeights(ratio.masked_fill(outside, 0.0), outside)


def bounded_ratio(log_ratio: Tensor) -> Tensor:
    """exp(log ρ) without gradient, between e^−20 and e^20."""
    return torch.exp(log_ratio.detach().clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT))


def effective_sample_size(weights: Tensor) -> float:
    """(Σw)² / (N·Σw²), Kish's effective sample size as a share of N: 1 for equal weights, 1/N where one outweighs all.

    Weights that are all 0 leave nothing to learn from, which is 0.
    """
    weights = weights.double()
    squares = float(len(weights) * weights.square().sum())
    return float(weights.sum().square()) / squares if squares else 0.0


def _sequence_ratio(log_ratio: Tensor, rows: Tensor) -> Tensor:
    """(N,) ∏ρ of each token's sequence. Sums in float64, where the order of additions leaves no trace in a float32."""
    sums = torch.bincount(rows, weights=log_ratio.detach().double())
    return bounded_ratio(sums)[rows].to(log_ratio.dtype)


IMPORTANCE_CORRECTIONS: dict[str, Callable[[Tensor, Tensor, LearnerConfig], ImportanceWeights]] = {
    "none": no_correction,
    "token_tis": token_tis,
    "sequence_tis": sequence_tis,
    "sequence_mis": sequence_mis,
    "icepop": icepop,
}
