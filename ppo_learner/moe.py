"""Mixtures of experts: how evenly routers spread tokens, as a loss and as numbers to watch.

It must not know policies or batches. Invariants: padding counts nowhere; the loss is that of all tokens of an update,
on all ranks, so no split of them changes it. L layers with experts, E experts of each, T tokens, padding included. A
*routing* is what routers did with some tokens: (2, L, E), for each expert the sum of the probabilities that it was
given, which carries the gradient, and how many tokens went to it. Those of several micro-batches add up.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppo_learner.ranks import Ranks
from services.contracts.errors import UserError


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


def routing(router_logits: Sequence[Tensor], real: Tensor, num_per_token: int) -> Tensor:
    """(2, L, E) of a micro-batch.

    Args:
        router_logits: for each layer (T, E).
        real: (T,) False on padding.
        num_per_token: how many experts each token goes to.
    """
    layers = []
    for logits in router_logits:
        precision = torch.promote_types(logits.dtype, torch.float32)
        probabilities = torch.softmax(logits, dim=-1, dtype=precision)  # (T, E)
        chosen = torch.zeros_like(probabilities).scatter_(1, logits.topk(num_per_token, dim=-1).indices, 1.0)
        layers.append((torch.stack([probabilities, chosen]) * real[:, None]).sum(dim=1))
    return torch.stack(layers, dim=1)


def routing_of_all(own: Sequence[Tensor], ranks: Ranks) -> Tensor:
    """(2, L, E) of the micro-batches of all ranks, on this rank's device. Every rank calls it.

    Args:
        own: (2, L, E) of each of this rank's.
    """
    return ranks.sum(torch.stack(list(own)).sum(dim=0)).to(ranks.device)


def balance_loss(part: Tensor, whole: Tensor) -> Tensor:
    """What a micro-batch adds to E·Σ_i f_i·P_i, averaged over layers: f_i are the tokens that went to an expert and P_i
    its probabilities, both over the tokens. It is the experts per token where all are used alike, and larger else.

    Equations 4 to 6 of the Switch Transformer (Fedus et al. 2021, arXiv 2101.03961), each layer by itself, and f of
    everything that is learnt at once (arXiv 2501.11873), since balance within a few sequences hinders specialisation.
    Transformers pools all layers before it multiplies, so that opposite imbalances of two layers cancel.

    Args:
        part: (2, L, E) routing of the micro-batch.
        whole: (2, L, E) routing of the whole update, its own included; no gradient goes through it.
    """
    probabilities, loads = whole.detach()
    count = probabilities.sum(dim=1, keepdim=True).clamp(min=1)  # A token's probabilities add up to 1.
    products: Tensor = loads / count * part[0] / count  # (L, E)
    return part.shape[-1] * products.sum(dim=1).mean()


def router_metrics(whole: Tensor) -> dict[str, float]:
    """The balance loss, the busiest expert over the mean, the entropy of the spread over its largest value, and the
    experts without a token; averaged over layers.

    Args:
        whole: (2, L, E) routing of a whole step.
    """
    loads = whole[1].double()
    shares = loads / loads.sum(dim=1, keepdim=True)
    num_experts = loads.shape[1]
    entropy = torch.special.entr(shares).sum(dim=1) / torch.log(torch.tensor(num_experts, dtype=torch.float64))
    return {
        "router/balance_loss": float(balance_loss(whole, whole)),
        "router/load_max_over_mean": float((shares.max(dim=1).values * num_experts).mean()),
        "router/load_entropy": float(entropy.mean()),
        "router/unused_experts": float((loads == 0).double().sum(dim=1).mean()),
    }
