"""How far the policy is from its reference: estimators of KL(π ‖ π_ref) per token, and control of its coefficient.

It must not know models or ranks. Invariant: every estimator is 0 where the two logprobs are equal.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

_LARGEST_ERROR = 0.2
"""Ziegler et al. clip the relative KL error here, so that one odd batch moves the coefficient little."""

_LOG_RATIO_LIMIT = 20.0


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """log π − log π_ref: unbiased under samples of π, and negative on many tokens. (N,) → (N,)."""
    return logprobs - reference_logprobs


def k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """½·(log π − log π_ref)²: biased, low variance; its gradient is that of the KL. (N,) → (N,)."""
    return 0.5 * (logprobs - reference_logprobs).square()


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """π_ref/π − 1 − log(π_ref/π): unbiased and never negative (Schulman 2020, "Approximating KL"). (N,) → (N,)."""
    log_ratio = (reference_logprobs - logprobs).clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)
    return torch.expm1(log_ratio) - log_ratio


def next_kl_coefficient(
    coefficient: float, *, kl: float, target: float | None, horizon: int, num_completions: int
) -> float:
    """Proportional control in log space (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).

    β ← β·(1 + clip(KL/target − 1, ±0.2)·n/horizon)

    Args:
        kl: mean KL per completion of the last batch, in nats; one that is not finite leaves the coefficient unchanged.
        target: where to steer it; None returns the coefficient unchanged.
        horizon: completions over which the coefficient responds.
        num_completions: n, the size of that batch.
    """
    if target is None or not math.isfinite(kl):
        return coefficient
    error = min(max(kl / target - 1.0, -_LARGEST_ERROR), _LARGEST_ERROR)
    return max(coefficient * (1.0 + error * num_completions / horizon), 0.0)


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
