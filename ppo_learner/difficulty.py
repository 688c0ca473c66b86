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
    shares = _group_means(solved.to(advantages.dtype), torch.ones_like(advantages), groups)
    rarity = torch.where(advantages > 0, shares, 1 - shares)
    return _LOWEST + (_HIGHEST - _LOWEST) * torch.sigmoid(-_STEEPNESS * (rarity - _MIDDLE))


def concise_scores(scores: Tensor, solved: Tensor, lengths: Tensor, groups: Tensor, *, strength: float) -> Tensor:
    """R·e^{−αz} of completions that solved their prompt, and R of the others.

    z is the length less the mean over the group's solutions, in deviations of these.

    Args:
        scores: (B,) R.
        solved: (B,) True for a completion that solved its prompt.
        lengths: (B,) in tokens.
        groups: (B,) group of each.
        strength: α.

    Returns:
        (B,).
    """
    counted, sizes = solved.to(scores.dtype), lengths.to(scores.dtype)
    centred = sizes - _group_means(sizes, counted, groups)
    deviation = _group_means(centred.square(), counted, groups).sqrt()
    z = centred / torch.where(deviation > 0, deviation, 1.0)
    return torch.where(solved, scores * torch.exp(-strength * z), scores)


def _group_means(values: Tensor, counted: Tensor, groups: Tensor) -> Tensor:
    """(B,) the mean over the counted completions of each one's group; 0 where none counts."""
    sums, sizes = (
        torch.zeros(int(groups.max()) + 1, dtype=values.dtype).index_add(0, groups, column)
        for column in (values * counted, counted)
    )
    return (sums / sizes.clamp(min=1))[groups]
