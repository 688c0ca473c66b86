"""One pass of a network over the examples of a call, with or without learning them.

It must not know what is learnt, nor how often. Invariant: the gradient is that of the mean over the terms of all
examples of all ranks, and of the balance loss of all their tokens, so no split of them changes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppo_learner.engine import Engine
from ppo_learner.moe import balance_loss, routing_of_all
from ppo_learner.ranks import Ranks
from ppo_learner.task import Part, Questions, Work


@dataclass(frozen=True, kw_only=True, slots=True)
class Descent:
    """How an update learns what a pass measures.

    Attributes:
        weight: of all of it.
        router_loss_coefficient: what the balance loss of experts counts beside the loss.
        ends_update: whether nothing else is added to the gradient before the optimizer's step.
    """

    weight: float = 1.0
    router_loss_coefficient: float = 0.0
    ends_update: bool = True


def own_parts(questions: Questions, ranks: Ranks, *, max_tokens: int) -> list[Part]:
    """This rank's share, of at most `max_tokens` at once."""
    return questions.plan(max_tokens=max_tokens, num_ranks=ranks.num_shares)[ranks.share]


def means(
    work: Work, parts: Sequence[Part], network: Engine, ranks: Ranks, descent: Descent | None
) -> tuple[Tensor, Tensor | None]:
    """Every rank calls it with its own parts.

    Args:
        descent: None if nothing is learnt.

    Returns:
        (M,) this rank's part of the means over all terms, and (2, L, E) what routers did with its parts; None without
        experts.
    """
    whole = None
    if descent and descent.router_loss_coefficient:
        whole = _routing_of_work(work, parts, network, ranks)
    total, routing = torch.zeros(()), None
    for number, part in enumerate(parts, start=1):
        answer = work.answer(network, part, ranks.device)
        terms = work.sums(answer.values, part) / work.num_terms
        if descent:
            loss = terms[0]
            if whole is not None:
                loss = loss + descent.router_loss_coefficient * balance_loss(_present(answer.routing), whole)
            network.backward(descent.weight * loss, last=descent.ends_update and number == len(parts))
        total = total + terms.detach().double().cpu()
        if answer.routing is not None:
            routing = answer.routing.detach() + (0.0 if routing is None else routing)
    return total, routing


@torch.no_grad()
def _routing_of_work(work: Work, parts: Sequence[Part], network: Engine, ranks: Ranks) -> Tensor:
    """(2, L, E) of the parts of all ranks, by the network as it is."""
    own = [_present(work.answer(network, part, ranks.device).routing) for part in parts]
    return routing_of_all(own, ranks)


def _present(routing: Tensor | None) -> Tensor:
    assert routing is not None, "a balance loss without experts"
    return routing
