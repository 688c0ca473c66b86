"""How much better each sampled token was than expected, before it is made a column that is trained on.

It must not know models, ranks or micro-batches. Here T counts sampled tokens only: column t of a row is its t-th
sampled token, so tool and environment tokens between two turns take no part. Invariant: entries outside `mask` are 0
on the way in and on the way out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppo_learner.config import LearnerConfig
from ppo_learner.difficulty import concise_scores, difficulty_weights
from ppo_learner.group_advantages import (
    STD_FLOOR,
    group_normalised_advantages,
    leave_one_out_advantages,
    step_normalised_advantages,
)
from ppo_learner.step_rewards import StepRewards


@dataclass(frozen=True, kw_only=True, slots=True)
class Episodes:
    """What advantages are made of.

    Attributes:
        rewards: (B, T) reward per token; a score of the whole completion stands on its last token.
        mask: (B, T) True on sampled tokens.
        groups: (B,) which group each row belongs to, from 0.
        totals: (B,) total reward of each completion, unweighted.
        solved: (B,) True for a completion whose reward makes it a solution.
        values: (B, T) the critic's value before each token; None without a critic.
        turn_ends: (B, T) True on the last token of each turn that another turn follows.
        baselines: (B,) weighted reward of the greedy answer to each completion's prompt; only where one is sampled.
        steps: the rewards of steps, unweighted; only where they count.
    """

    rewards: Tensor
    mask: Tensor
    groups: Tensor
    totals: Tensor
    solved: Tensor
    turn_ends: Tensor
    values: Tensor | None = None
    baselines: Tensor | None = None
    steps: StepRewards | None = None


def generalised_advantages(
    rewards: Tensor, values: Tensor, *, gamma: float | Tensor, gae_lambda: float | Tensor
) -> Tensor:
    """GAE (Schulman et al. 2016, arXiv 1506.02438): A_t = δ_t + γλ·A_{t+1} with δ_t = r_t + γ·V_{t+1} − V_t.

    The completion's end is terminal: beyond its last token value and advantage are 0.

    Args:
        rewards: (B, T), 0 after each row's last token.
        values: (B, T), 0 after each row's last token.
        gamma: γ, one for all or (B, T) from each token to the next.
        gae_lambda: λ, likewise.

    Returns:
        (B, T).
    """
    discounts, traces = (
        torch.as_tensor(given, dtype=rewards.dtype).expand_as(rewards) for given in (gamma, gae_lambda)
    )
    advantages = torch.zeros_like(rewards)
    following_advantage = torch.zeros_like(rewards[:, 0])  # (B,)
    following_value = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + discounts[:, t] * following_value - values[:, t]
        following_advantage = delta + discounts[:, t] * traces[:, t] * following_advantage
        following_value = values[:, t]
        advantages[:, t] = following_advantage
    return advantages


def returns_to_go(rewards: Tensor, *, gamma: float | Tensor) -> Tensor:
    """Monte-Carlo returns (Williams 1992): G_t = r_t + γ·G_{t+1}. Less a critic's value, they are GAE with λ = 1.

    Args:
        rewards: (B, T), 0 after each row's last token.
        gamma: γ, one for all or (B, T) from each token to the next.

    Returns:
        (B, T), of tokens after a row's last 0.
    """
    return generalised_advantages(rewards, torch.zeros_like(rewards), gamma=gamma, gae_lambda=1.0)


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
    return centred / (std + STD_FLOOR)


def _gae(episodes: Episodes, config: LearnerConfig) -> Tensor:
    assert episodes.values is not None
    return generalised_advantages(
        episodes.rewards,
        episodes.values,
        gamma=_per_turn(config.gamma, config.turn_gamma, episodes),
        gae_lambda=_per_turn(config.gae_lambda, config.turn_gae_lambda, episodes),
    )


def _monte_carlo(episodes: Episodes, config: LearnerConfig) -> Tensor:
    return returns_to_go(episodes.rewards, gamma=_per_turn(config.gamma, config.turn_gamma, episodes))


def _greedy_baseline(episodes: Episodes, config: LearnerConfig) -> Tensor:
    """ReMax (Li et al. 2023, arXiv 2310.10505): G_t less the reward of the policy's greedy answer to the prompt."""
    assert episodes.baselines is not None
    return (_monte_carlo(episodes, config) - episodes.baselines[:, None]) * episodes.mask


def _per_turn(within: float, between: float | None, episodes: Episodes) -> Tensor:
    """(B, T) a factor from each token to the next: one within a turn, and one between two, as in dual discounting
    (Verlog, Chen et al. 2025); with the same for both, a turn's end is nothing special."""
    factors = torch.full_like(episodes.rewards, within)
    return factors if between is None else factors.masked_fill(episodes.turn_ends, between)


def _group_normalised(episodes: Episodes, config: LearnerConfig) -> Tensor:
    scores, solved = episodes.rewards.sum(dim=1), episodes.solved
    if config.length_penalty:
        lengths = episodes.mask.sum(dim=1)
        shorter = concise_scores(episodes.totals, solved, lengths, episodes.groups, strength=config.length_penalty)
        scores = scores + config.total_weight * (shorter - episodes.totals)
    advantages = group_normalised_advantages(scores, episodes.groups, divide_by_std=config.normalise_group_std)
    if config.difficulty_weighting:
        advantages = advantages * difficulty_weights(advantages, solved, episodes.groups)
    return advantages[:, None] * episodes.mask


def _step_normalised(episodes: Episodes, config: LearnerConfig) -> Tensor:
    assert episodes.steps is not None
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
    "monte_carlo": _monte_carlo,
    "greedy_baseline": _greedy_baseline,
    "group_normalised": _group_normalised,
    "step_normalised": _step_normalised,
    "leave_one_out": _leave_one_out,
}
