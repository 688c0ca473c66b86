"""Advantages of every algorithm once more, from what completions earned to their tokens, in plain NumPy loops.

It must not import ppo_learner: the two share nothing but the papers. A batch is a list of groups, a group a list of
completions; every algorithm returns one array per completion, in order.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.ppo_learner.numpy_reference import (
    Floats,
    gae,
    group_normalised,
    leave_one_out,
    returns_to_go,
    step_normalised,
    whitened,
)


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What one earned as a whole and by steps (ending token, reward), what the greedy answer to its prompt earned, and
    of each token what it loses for its KL and what a critic says."""

    total: float
    steps: list[tuple[int, float]]
    greedy: float
    penalty: Floats
    values: Floats


@dataclass(frozen=True, kw_only=True)
class Settings:
    gamma: float
    gae_lambda: float
    total_weight: float


Groups = list[list[Completion]]


def token_rewards(completion: Completion, settings: Settings) -> Floats:
    """r_t = −β·KL_t, and the weighted total on the last token."""
    rewards = np.array([-penalty for penalty in completion.penalty])
    rewards[-1] += settings.total_weight * completion.total
    return rewards


def critic(groups: Groups, settings: Settings) -> list[Floats]:
    return [
        gae(token_rewards(one, settings), one.values, settings.gamma, settings.gae_lambda)
        for group in groups
        for one in group
    ]


def monte_carlo(groups: Groups, settings: Settings) -> list[Floats]:
    return [returns_to_go(token_rewards(one, settings), settings.gamma) for group in groups for one in group]


def remax(groups: Groups, settings: Settings) -> list[Floats]:
    """ReMax (arXiv 2310.10505): what is still to come, less what the greedy answer earned."""
    completions = [one for group in groups for one in group]
    returns = monte_carlo(groups, settings)
    return [
        np.array([g - settings.total_weight * one.greedy for g in of_tokens])
        for of_tokens, one in zip(returns, completions, strict=True)
    ]


def centred(scores: Floats) -> Floats:
    """GRPO without the deviation, as in Dr. GRPO (arXiv 2503.20783)."""
    mean = sum(scores) / len(scores)
    return np.array([score - mean for score in scores])


def within_groups(groups: Groups, settings: Settings, compare: Callable[[Floats], Floats]) -> list[Floats]:
    """One advantage for all tokens of a completion."""
    advantages = []
    for group in groups:
        scores = np.array([sum(token_rewards(one, settings)) for one in group])
        advantages += [
            np.full(len(one.penalty), advantage) for one, advantage in zip(group, compare(scores), strict=True)
        ]
    return advantages


def grpo(groups: Groups, settings: Settings) -> list[Floats]:
    return within_groups(groups, settings, group_normalised)


def dr_grpo(groups: Groups, settings: Settings) -> list[Floats]:
    return within_groups(groups, settings, centred)


def rloo(groups: Groups, settings: Settings) -> list[Floats]:
    return within_groups(groups, settings, leave_one_out)


def grpo_of_steps(groups: Groups, settings: Settings) -> list[Floats]:
    """Section 4.1.3 of arXiv 2402.03300, with the group's totals beside its steps."""
    of_steps: list[Floats] = []
    for group in groups:
        of_steps += step_normalised([one.steps for one in group], [len(one.penalty) for one in group])
    unweighted = Settings(gamma=1.0, gae_lambda=1.0, total_weight=1.0)
    of_totals = within_groups(groups, unweighted, group_normalised)
    return [steps + settings.total_weight * total for steps, total in zip(of_steps, of_totals, strict=True)]


def over_the_batch(advantages: list[Floats]) -> list[Floats]:
    """(A − mean)/std over all tokens of the batch, as REINFORCE++ (arXiv 2501.03262) and PPO's code have it."""
    return list(np.split(whitened(np.concatenate(advantages)), np.cumsum([len(a) for a in advantages])[:-1]))


ALGORITHMS: dict[str, Callable[[Groups, Settings], list[Floats]]] = {
    "ppo": lambda groups, settings: over_the_batch(critic(groups, settings)),
    "grpo": grpo,
    "grpo_process": grpo_of_steps,
    "rloo": rloo,
    "reinforce": monte_carlo,
    "reinforce_pp": lambda groups, settings: over_the_batch(monte_carlo(groups, settings)),
    "reinforce_pp_baseline": lambda groups, settings: over_the_batch(dr_grpo(groups, settings)),
    "remax": remax,
    "dr_grpo": dr_grpo,
    "dapo": grpo,
    "gspo": grpo,
    "cispo": grpo,
    "sapo": grpo,
}
