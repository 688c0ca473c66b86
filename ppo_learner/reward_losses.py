"""Losses of reward models, from the raw scores of each example's completions or steps.

They must not know models, ranks or how examples are averaged. Invariant: what fills a row up has no effect on its loss
or gradient. E examples, K scores of the example that has most; `mask` is True on scores and False on filling.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_NOTHING = -1e30
"""Stands for log 0 with a gradient that is 0, where −∞ would give NaN."""


def bradley_terry_loss(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """−log σ(r_c − r_r − m): the better of two is to be ahead, by a margin where people said how much better it is.

    Bradley and Terry 1952, as in Ouyang et al. 2022 (arXiv 2203.02155), equation 1; the margin as in Touvron et al.
    2023 (arXiv 2307.09288), equation 2.

    Args:
        scores: (E, 2) of the chosen completion and of the rejected one.
        targets: (E, 2) ratings, whose difference is the margin m.
        mask: (E, 2) all True.

    Returns:
        (E,) loss of each pair.
    """
    lead, margin = (pair[:, 0] - pair[:, 1] for pair in (scores, targets))
    return -functional.logsigmoid(lead - margin)


def plackett_luce_loss(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """−Σ_l log(e^{r_l} / Σ_{k≥l} e^{r_k}): the ranking is drawn best first, each time from those that are left.

    Plackett 1975; as a loss ListMLE of Xia et al. 2008. With two completions it is Bradley–Terry without a margin.

    Args:
        scores: (E, K) best completion first.
        targets: not used.
        mask: (E, K).

    Returns:
        (E,) loss of each list.
    """
    held = torch.where(mask, scores, _NOTHING)
    rest = held.flip(1).logcumsumexp(1).flip(1)  # (E, K) log Σ_{k≥l} e^{r_k}
    return torch.where(mask, rest - held, 0.0).sum(dim=1)


def cross_entropy_loss(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """−y·log σ(r) − (1 − y)·log σ(−r), added up over an example's scores; y may be a share, such as a success rate.

    For one score an outcome (Cobbe et al. 2021, arXiv 2110.14168), for steps a process reward (Lightman et al. 2023,
    arXiv 2305.20050; soft Monte-Carlo labels in Wang et al. 2023, arXiv 2312.08935, equation 2).

    Args:
        scores: (E, K).
        targets: (E, K) labels from 0 to 1.
        mask: (E, K).

    Returns:
        (E,) loss of each example.
    """
    losses = functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    return torch.where(mask, losses, 0.0).sum(dim=1)


def squared_error_loss(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """(r − y)², added up over an example's scores.

    Args:
        scores: (E, K).
        targets: (E, K) ratings on any scale.
        mask: (E, K).

    Returns:
        (E,) loss of each example.
    """
    return torch.where(mask, (scores - targets).square(), 0.0).sum(dim=1)


REWARD_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "bradley_terry": bradley_terry_loss,
    "plackett_luce": plackett_luce_loss,
    "cross_entropy": cross_entropy_loss,
    "squared_error": squared_error_loss,
}
