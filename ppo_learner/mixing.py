"""Demonstrations beside rollouts: their loss joins the policy's objective in the same optimizer steps.

It must not know rewards, nor which demonstrations a step is given. Invariants: an update descends w·L_RL + λ·L, w being
1 or 1 − λ, where L is the mean cross-entropy over all learnt tokens of its demonstrations, on all ranks, so no split of
them changes it; each demonstration of a learner step belongs to one update, and is not learnt where `kl_stop` leaves
that update out. With demonstrations of the pretraining data it is PPO-ptx (Ouyang et al. 2022, arXiv 2203.02155,
equation 2, whose γ is λ here); with those of earlier tasks it is a replay.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from ppo_learner.config import LearnerConfig
from ppo_learner.demonstrations import DemonstrationWork
from ppo_learner.descent import Descent, means, own_parts
from ppo_learner.networks import Networks
from ppo_learner.ranks import Ranks
from services.contracts.records import Demonstration, WeightedDemonstrations


def descend_demonstrations(
    demonstrations: Sequence[Demonstration], coefficient: float, networks: Networks, config: LearnerConfig, ranks: Ranks
) -> tuple[Tensor, int]:
    """Add λ times their gradient to the policy's; the rollouts' must follow, whose last part ends the update.

    The temperature is 1, whatever rollouts are sampled with: what is learnt is the model, as supervised training does.
    Every rank calls it.

    Returns:
        (), this rank's part of their mean loss before it was weighted, and the learnt tokens of all ranks.
    """
    work = DemonstrationWork(demonstrations, packed=networks.packed)
    parts = own_parts(work, ranks, max_tokens=config.max_tokens_per_pass)
    descent = Descent(weight=coefficient, router_loss_coefficient=config.router_loss_coefficient, ends_update=False)
    (loss,), _ = means(work, parts, networks.policy, ranks, descent)
    return loss.to(ranks.device), work.num_terms


def shares(demonstrations: Sequence[Demonstration], num_updates: int) -> list[Sequence[Demonstration]]:
    """The demonstrations of each update of a learner step, in order and as even as their number allows."""
    bounds = [number * len(demonstrations) // num_updates for number in range(num_updates + 1)]
    return [demonstrations[begin:end] for begin, end in pairwise(bounds)]


def learnt(demonstrations: WeightedDemonstrations | None, *, trained_policy: bool) -> WeightedDemonstrations | None:
    """These, or None where a step does not learn from them: their coefficient is 0, or the policy stands still."""
    return demonstrations if demonstrations and demonstrations.coefficient and trained_policy else None
