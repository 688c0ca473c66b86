"""How the losses of tokens become one loss: what each sampled token of an optimizer step counts.

It must not know losses or models. Invariant: a weight is a function of the lengths of all sequences of the step, over
all ranks, so no split of the batch changes it. B sequences of one optimizer step.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ppo_learner.config import LearnerConfig


def token_mean(counts: Tensor, config: LearnerConfig) -> Tensor:
    """1/Σ_i T_i: all tokens alike (DAPO, arXiv 2503.14476).

    Args:
        counts: (B,) sampled tokens of each sequence.

    Returns:
        (B,) the weight of every token of that sequence.
    """
    return torch.ones_like(counts, dtype=torch.float64) / counts.sum().clamp(min=1)


def sequence_mean(counts: Tensor, config: LearnerConfig) -> Tensor:
    """1/(B·T_i): all completions alike, as in GRPO's paper (arXiv 2402.03300); one without a token is none of the B."""
    return 1.0 / (counts.clamp(min=1) * (counts > 0).sum().clamp(min=1)).double()


def constant_length(counts: Tensor, config: LearnerConfig) -> Tensor:
    """1/(B·L) with a constant L: a token counts the same in a long completion and a short one, and in every step, which
    leaves the policy gradient unbiased (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783). L is `loss_length`.

    Unlike the other two, these weights do not sum to 1.
    """
    assert config.loss_length is not None, "LearnerConfig.for_run says what it is"
    return torch.full_like(counts, 1.0 / (len(counts) * config.loss_length), dtype=torch.float64)


AGGREGATIONS: dict[str, Callable[[Tensor, LearnerConfig], Tensor]] = {
    "token_mean": token_mean,
    "sequence_mean": sequence_mean,
    "constant_length": constant_length,
}
