"""Held-out accuracy: greedy, sampled, and pass@k, on the same workers and reward service that train.

It must not know how a policy is trained. Invariant: an evaluation leaves no trace in the run's state; its prompts have
ids of their own, so no training seed changes.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import comb
from statistics import fmean

from services.contracts.errors import SampleNotScorable
from services.contracts.interfaces import RewardScorer, RolloutSource
from services.contracts.records import Failure, Prompt, Reward, RolloutGroup, SampleRequest, Sampling
from services.control.config import EvaluateConfig
from services.control.reward_samples import to_reward_samples

_MAX_GROUPS_IN_FLIGHT = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class GradedCompletion:
    """One completion of an evaluation, and whether it counts as correct."""

    prompt: str
    completion: str
    reward: float
    correct: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What an evaluation measured, as shares of 1; `completions` are the greedy ones, in the order of the prompts."""

    accuracy: float
    sampled_accuracy: float | None = None
    pass_at: Mapping[int, float] = field(default_factory=dict)
    completions: Sequence[GradedCompletion] = ()

    def metrics(self) -> dict[str, float]:
        sampled = {} if self.sampled_accuracy is None else {"evaluation/sampled_accuracy": self.sampled_accuracy}
        passes = {f"evaluation/pass@{k}": share for k, share in self.pass_at.items()}
        return {"evaluation/accuracy": self.accuracy, **sampled, **passes}


async def evaluate(
    prompts: Sequence[Prompt],
    *,
    rollouts: RolloutSource,
    rewards: RewardScorer,
    sampling: Sampling,
    config: EvaluateConfig,
) -> Evaluation:
    """Sample and grade every prompt.

    Args:
        sampling: the training run's; its temperature is used for the sampled accuracy, and 0 for the greedy one.

    Raises:
        SampleNotScorable: when the reward service refuses a sample.
    """
    greedy = replace(sampling, num_samples=1, temperature=0.0, top_p=1.0, top_k=0)
    graded = await _grade_all(prompts, greedy, rollouts, rewards, config)
    completions = [group[0] for group in graded]
    accuracy = fmean(completion.correct for completion in completions)
    if not config.num_samples:
        return Evaluation(accuracy=accuracy, completions=completions)
    sampled = await _grade_all(prompts, replace(sampling, num_samples=config.num_samples), rollouts, rewards, config)
    correct = [sum(completion.correct for completion in group) for group in sampled]
    return Evaluation(
        accuracy=accuracy,
        sampled_accuracy=fmean(count / config.num_samples for count in correct),
        pass_at={k: fmean(pass_at_k(config.num_samples, count, k) for count in correct) for k in config.ks},
        completions=completions,
    )


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Chance that k of the samples, drawn without replacement, hold a correct one: 1 − C(n−c, k) / C(n, k).

    The unbiased estimator of Chen et al., arXiv 2107.03374, equation 1.
    """
    return 1.0 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def is_correct(reward: Reward, config: EvaluateConfig) -> bool:
    """Whether the reward, or the component that counts, reaches the threshold.

    Raises:
        SampleNotScorable: the reward has no such component.
    """
    if config.component is None:
        return reward.value >= config.threshold
    if config.component not in reward.components:
        raise SampleNotScorable(
            f"evaluate.component is {config.component!r}, and the reward has {sorted(reward.components)}"
        )
    return reward.components[config.component] >= config.threshold


async def _grade_all(
    prompts: Sequence[Prompt],
    sampling: Sampling,
    rollouts: RolloutSource,
    rewards: RewardScorer,
    config: EvaluateConfig,
) -> list[list[GradedCompletion]]:
    in_flight = asyncio.Semaphore(_MAX_GROUPS_IN_FLIGHT)

    async def grade(prompt: Prompt) -> list[GradedCompletion]:
        own = replace(prompt, id=f"evaluation-{prompt.row}")
        async with in_flight:
            group = await rollouts.sample(SampleRequest(prompt=own, sampling=sampling))
            return _grade(group, await rewards.score(to_reward_samples(group)), config)

    return await asyncio.gather(*(grade(prompt) for prompt in prompts))


def _grade(group: RolloutGroup, outcomes: Sequence[Reward | Failure], config: EvaluateConfig) -> list[GradedCompletion]:
    graded = []
    for rollout, outcome in zip(group.rollouts, outcomes, strict=True):
        if isinstance(outcome, Failure):
            raise SampleNotScorable(f"evaluation prompt, row {group.prompt.row}: {outcome.message} ({outcome.code})")
        graded.append(
            GradedCompletion(
                prompt=group.prompt.text,
                completion=rollout.completion,
                reward=outcome.value,
                correct=is_correct(outcome, config),
            )
        )
    return graded
