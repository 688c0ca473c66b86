"""How much better each sampled token was than expected: GAE, leave-one-out, and normalised over completions or steps.

It must not know models, ranks or micro-batches. Here T counts sampled tokens only: column t of a row is its t-th
sampled token, so tool and environment tokens between two turns take no part. Invariant: entries outside `mask` are 0
on the way in and on the way out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppo_learner.config import LearnerConfig
from ppo_learner.step_rewards import StepRewards
from services.contracts.errors import UserError

_STD_FLOOR = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Episodes:
    """What advantages are made of.

    Attributes:
        rewards: (B, T) reward per token; a score of the whole completion stands on its last token.
        mask: (B, T) True on sampled tokens.
        groups: (B,) which group each row belongs to, from 0.
        values: (B, T) the critic's value before each token; None without a critic.
        totals: (B,) total reward of each completion, unweighted; only for what learns from steps, as `steps`.
        steps: the rewards of steps, unweighted.
    """

    rewards: Tensor
    mask: Tensor
    groups: Tensor
    values: Tensor | None = None
    totals: Tensor | None = None
    steps: StepRewards | None = None


def generalised_advantages(rewards: Tensor, values: Tensor, *, gamma: float, gae_lambda: float) -> Tensor:
    """GAE (Schulman et al. 2016, arXiv 1506.02438): A_t = δ_t + γλ·A_{t+1} with δ_t = r_t + γ·V_{t+1} − V_t.

    The completion's end is terminal: beyond its last token value and advantage are 0.

    Args:
        rewards: (B, T), 0 after each row's last token.
        values: (B, T), 0 after each row's last token.

    Returns:
        (B, T).
    """
    advantages = torch.zeros_like(rewards)
    following_advantage = torch.zeros_like(rewards[:, 0])  # (B,)
    following_value = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following_advantage = delta + gamma * gae_lambda * following_advantage
        following_value = values[:, t]
        advantages[:, t] = following_advantage
    return advantages


def group_normalised_advantages(scores: Tensor, groups: Tensor, *, divide_by_std: bool = True) -> Tensor:
    """GRPO (Shao et al. 2024, arXiv 2402.03300): (R − mean) / std over the group, with the sample deviation (G − 1).

    Without the division this is the unbiased form of Dr. GRPO (Liu et al. 2025, arXiv 2503.20783).

    Args:
        scores: (B,) total reward of each completion.
        groups: (B,) group of each.

    Returns:
        (B,).

    Raises:
        UserError: a group with one completion.
    """
    _refuse_single(groups)
    return _normalised(scores, groups, divide_by_std=divide_by_std)


def step_normalised_advantages(
    steps: StepRewards, mask: Tensor, groups: Tensor, *, divide_by_std: bool = True
) -> Tensor:
    """GRPO with process rewards (arXiv 2402.03300, section 4.1.3): A_t = Σ r̃_j over the steps j that end at t or later.

    r̃ = (r − mean) / std over all steps of all completions of the group. A completion without steps has advantage 0.

    Args:
        steps: S rewards of steps.
        mask: (B, T) True on sampled tokens.
        groups: (B,) group of each completion.

    Returns:
        (B, T), 0 outside `mask`.

    Raises:
        UserError: a group with one completion.
    """
    _refuse_single(groups)
    normalised = _normalised(steps.values, groups[steps.rows], divide_by_std=divide_by_std)
    later = steps.spread(normalised, mask).flip(1).cumsum(1).flip(1)
    return later * mask


def leave_one_out_advantages(scores: Tensor, groups: Tensor) -> Tensor:
    """RLOO (Ahmadian et al. 2024, arXiv 2402.14740): R_i − mean of the group's others = G/(G − 1)·(R_i − mean).

    Args:
        scores: (B,) total reward of each completion.
        groups: (B,) group of each.

    Returns:
        (B,).

    Raises:
        UserError: a group with one completion.
    """
    _refuse_single(groups)
    sizes, centred = _centre(scores, groups)
    return centred * (sizes / (sizes - 1))[groups]


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale to mean 0 and deviation 1 over the entries in `mask`, of the whole batch at once.

    Args:
        values: (B, T).
        mask: (B, T).

    Returns:
        (B, T), 0 outside `mask`.
    """
    count = mask.sum().clamp(min=1)
    centred = (values - (values * mask).sum() / count) * mask
    std = (centred.square().sum() / count).sqrt()
    return centred / (std + _STD_FLOOR)


def _refuse_single(groups: Tensor) -> None:
    if torch.bincount(groups).min() < 2:
        raise UserError(
            "a group has 1 completion, and group advantages compare at least 2 of the same prompt; "
            "raise rollout.samples_per_prompt, or use algorithm ppo"
        )


def _normalised(values: Tensor, groups: Tensor, *, divide_by_std: bool) -> Tensor:
    """(N,) values less their group's mean, over its sample deviation; of a group of one, 0."""
    sizes, centred = _centre(values, groups)
    if not divide_by_std:
        return centred
    squares = torch.zeros_like(sizes).index_add_(0, groups, centred.square())
    std = (squares / (sizes - 1).clamp(min=1)).sqrt()
    return centred / (std[groups] + _STD_FLOOR)


def _centre(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Group sizes, and (N,) values less their group's mean."""
    sizes = torch.bincount(groups).to(values.dtype)
    means = torch.zeros_like(sizes).index_add_(0, groups, values) / sizes
    return sizes, values - means[groups]


def _gae(episodes: Episodes, config: LearnerConfig) -> Tensor:
    assert episodes.values is not None
    return generalised_advantages(episodes.rewards, episodes.values, gamma=config.gamma, gae_lambda=config.gae_lambda)


def _group_normalised(episodes: Episodes, config: LearnerConfig) -> Tensor:
    advantages = group_normalised_advantages(
        episodes.rewards.sum(dim=1), episodes.groups, divide_by_std=config.normalise_group_std
    )
    return advantages[:, None] * episodes.mask


def _step_normalised(episodes: Episodes, config: LearnerConfig) -> Tensor:
    assert episodes.totals is not None and episodes.steps is not None
    advantages = config.step_weight * step_normalised_advantages(
        episodes.steps, episodes.mask, episodes.groups, divide_by_std=config.normalise_group_std
    )
    if not config.total_weight:
        return advantages
    of_totals = group_normalised_advantages(episodes.totals, episodes.groups, divide_by_std=config.normalise_group_std)
    return advantages + config.total_weight * of_totals[:, None] * episodes.mask


def _leave_one_out(episodes: Episodes, config: LearnerConfig) -> Tensor:
    return leave_one_out_advantages(episodes.rewards.sum(dim=1), episodes.groups)[:, None] * episodes.mask


ADVANTAGES: dict[str, Callable[[Episodes, LearnerConfig], Tensor]] = {
    "gae": _gae,
    "group_normalised": _group_normalised,
    "step_normalised": _step_normalised,
    "leave_one_out": _leave_one_out,
}
