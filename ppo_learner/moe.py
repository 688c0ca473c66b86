"""Mixtures of experts: how evenly routers spread tokens, as a loss and as numbers to watch.

It must not know policies or batches. Invariant: padding counts nowhere. L layers with experts, E experts of each, T
tokens, padding included.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from services.contracts.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """What the routers of a network did with a micro-batch.

    Attributes:
        balance_loss: scalar; the experts per token where all are used alike, and larger where they are not.
        loads: (L, E) tokens that went to each expert.
    """

    balance_loss: Tensor
    loads: Tensor


def experts_per_token(network: Any) -> int | None:  # Any: transformers
    """How many experts each token goes to; None where there are none, or they are balanced without a loss."""
    records = getattr(network.get_decoder(), "_can_record_outputs", None) or {}
    balanced_by_loss = hasattr(network.config, "router_aux_loss_coef") and "router_logits" in records
    return int(network.config.num_experts_per_tok) if balanced_by_loss else None


def check_experts(num_per_token: int | None, coefficient: float, path: str) -> None:
    """Raise `UserError` when a loss on routers is asked for, and there are none."""
    if coefficient and num_per_token is None:
        raise UserError(
            f"learner.router_loss_coefficient is {coefficient}, and {path!r} has no experts that a loss balances; "
            "set it to 0"
        )


def routing(router_logits: Sequence[Tensor], real: Tensor, num_per_token: int) -> Routing:
    """E·Σ_i f_i·P_i, averaged over layers, with f_i the tokens per expert over the tokens and P_i the mean probability.

    Equations 4 to 6 of the Switch Transformer (Fedus et al. 2021, arXiv 2101.03961), each layer by itself.
    Transformers pools all layers before it multiplies, so that opposite imbalances of two layers cancel.

    Args:
        router_logits: for each layer (T, E).
        real: (T,) False on padding.
        num_per_token: how many experts each token goes to.
    """
    count = real.sum().clamp(min=1)
    losses, loads = [], []
    for logits in router_logits:
        precision = torch.promote_types(logits.dtype, torch.float32)
        probabilities = torch.softmax(logits, dim=-1, dtype=precision) * real[:, None]  # (T, E)
        chosen = torch.zeros_like(probabilities).scatter_(1, logits.topk(num_per_token, dim=-1).indices, 1.0)
        load = (chosen * real[:, None]).sum(dim=0)  # (E,)
        losses.append(logits.shape[1] * (load / count * probabilities.sum(dim=0) / count).sum())
        loads.append(load)
    return Routing(balance_loss=torch.stack(losses).mean(), loads=torch.stack(loads).detach())


def load_metrics(loads: Tensor) -> dict[str, float]:
    """The busiest expert over the mean, and the entropy of the spread over its largest value; averaged over layers.

    Args:
        loads: (L, E), of a whole step.
    """
    shares = loads.double() / loads.double().sum(dim=1, keepdim=True)
    num_experts = loads.shape[1]
    entropy = torch.special.entr(shares).sum(dim=1) / torch.log(torch.tensor(num_experts, dtype=torch.float64))
    return {
        "router/load_max_over_mean": float((shares.max(dim=1).values * num_experts).mean()),
        "router/load_entropy": float(entropy.mean()),
        "router/unused_experts": float((loads == 0).double().sum(dim=1).mean()),
    }
