"""Completions that come near their limit or are cut at it: what they lose, and whether they are learnt from.

It must not know networks. Invariant: a reward stays what the service said; what length takes off stands beside it,
under a name of its own.
"""

from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from ppo_learner.batching import rollouts_of
from ppo_learner.overlong_config import OverlongConfig
from services.contracts.errors import UserError
from services.contracts.records import ScoredGroup


def overlong_penalties(lengths: Tensor, *, limit: int, tokens: int) -> Tensor:
    """DAPO's soft overlong punishment (arXiv 2503.14476, equation 13), without its sign: 0 to 1.

    0 up to L_max − L_cache, 1 from L_max on, and (|y| − (L_max − L_cache)) / L_cache between.

    Args:
        lengths: (B,) completion tokens.
        limit: L_max.
        tokens: L_cache.
    """
    return ((lengths.double() - (limit - tokens)) / tokens).clamp(0.0, 1.0)


def length_rewards(groups: Sequence[ScoredGroup], config: OverlongConfig) -> Tensor | None:
    """(B,) what each completion's length adds to its reward, 0 or less; None where nothing is taken off.

    The config is `OverlongConfig.for_length`'s.
    """
    if config.overlong_tokens is None:
        return None
    assert config.overlong_limit is not None, "the limit is resolved before the learner starts"
    lengths = torch.tensor([rollout.num_completion_tokens for rollout in rollouts_of(groups)])
    return -config.overlong_penalty * overlong_penalties(
        lengths, limit=config.overlong_limit, tokens=config.overlong_tokens
    )


def learnt_completions(groups: Sequence[ScoredGroup], config: OverlongConfig) -> Tensor:
    """(B,) False on completions that were cut at their limit, where the loss is to leave these out.

    Raises:
        UserError: nothing is left to learn from.
    """
    rollouts = rollouts_of(groups)
    learnt = torch.tensor([not config.mask_truncated or rollout.finish_reason != "length" for rollout in rollouts])
    if not learnt.any():
        raise UserError(
            f"all {len(rollouts)} completions of the step were cut at their limit, and learner.mask_truncated "
            "learns from none of them; raise rollout.max_completion_tokens, or set it to false"
        )
    return learnt


def overlong_metrics(groups: Sequence[ScoredGroup], config: OverlongConfig) -> dict[str, float]:
    """The share of completions that were cut at their limit, and what length took off on average."""
    metrics = {"completion_tokens/truncated": fmean(r.finish_reason == "length" for r in rollouts_of(groups))}
    rewards = length_rewards(groups, config)
    return metrics if rewards is None else metrics | {"reward/overlong": float(rewards.mean())}
