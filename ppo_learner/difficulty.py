"""Hard prompts count more and long solutions less: two remedies of GRPO-LEAD (Zhang and Zuo 2025, arXiv 2504.09696).

It must not know tokens, models or ranks. Invariant: what is made of a completion depends on its group alone. B
completions, of which some solved their prompt.
"""

import torch
from torch import Tensor

_LOWEST, _HIGHEST, _STEEPNESS, _MIDDLE = 0.4, 1.5, 10.0, 0.75
"""Of the logistic weight, as in the paper's experiments."""


def difficulty_weights(advantages: Tensor, solved: Tensor, groups: Tensor) -> Tensor:
    """w(ρ) where A > 0, else w(1 − ρ), with w(x) = 0.4 + 1.1/(1 + e^{10·(x − 0.75)}) and ρ the share that solved.

    A rare success counts more than a common one, and so does a rare failure.

    Args:
        advantages: (B,).
        solved: (B,) True for a completion that solved its prompt.
        groups: (B,) group of each.

    Returns:
        (B,).
    """
    flags = solved.to(advantages.dtype)
    shares = _group_sums(flags, groups) / _group_sums(torch.ones_like(flags), groups)
    rarity = torch.where(advantages > 0, shares, 1 - shares)
    return _LOWEST + (_HIGHEST - _LOWEST) * torch.sigmoid(-_STEEPNESS * (rarity - _MIDDLE))


def concise_scores(scores: Tensor, solved: Tensor, lengths: Tensor, groups: Tensor, *, strength: float) -> Tensor:
    """R·e^{−αz} of completions that solved their prompt, and R of the others.

    z is the length less the mean over the group's solutions, in sample deviations of these.

    Args:
        scores: (B,) R.
        solved: (B,) True for a completion that solved its prompt.
        lengths: (B,) in tokens.
        groups: (B,) group of each.
        strength: α.

    Returns:
        (B,).
    """
    flags, sizes = solved.to(scores.dtype), lengths.to(scores.dtype)
    num_solutions = _group_sums(flags, groups)
    centred = sizes - _group_sums(flags * sizes, groups) / num_solutions.clamp(min=1)
    deviation = (_group_sums(flags * centred.square(), groups) / (num_solutions - 1).clamp(min=1)).sqrt()
    z = centred / torch.where(deviation > 0, deviation, 1.0)
    return torch.where(solved, scores * torch.exp(-strength * z), scores)


def _group_sums(values: Tensor, groups: Tensor) -> Tensor:
    """(B,) the sum over each one's group."""
    return torch.zeros(int(groups.max()) + 1, dtype=values.dtype).index_add(0, groups, values)[groups]
