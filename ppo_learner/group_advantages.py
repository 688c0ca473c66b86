"""How much better a completion, or a step of one, was than the others of its group: the estimators that need no critic.

They must not know tokens' rewards, models or ranks. Invariant: a group's advantages depend on that group alone. B
completions.
"""

import torch
from torch import Tensor

from ppo_learner.step_rewards import StepRewards
from services.contracts.errors import UserError

STD_FLOOR = 1e-6
"""Added to a deviation before it divides, so that scores that are all the same give 0."""


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
    return centred / (std[groups] + STD_FLOOR)


def _centre(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Group sizes, and (N,) values less their group's mean."""
    sizes = torch.bincount(groups).to(values.dtype)
    means = torch.zeros_like(sizes).index_add_(0, groups, values) / sizes
    return sizes, values - means[groups]
