"""Held-out accuracy: greedy, sampled, and pass@k, on the workers and reward service that train; and the gold reward.

It must not know how a policy is trained. Invariants: an evaluation leaves no trace in the run's state; its prompts have
ids of their own, so no training seed changes; proxy and gold are compared on the very same completions.
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
from services.control.reward_signals import GoldComparison

_MAX_GROUPS_IN_FLIGHT = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class GradedCompletion:
    """One completion of an evaluation, and whether it counts as correct."""

    prompt: str
    completion: str
    reward: float
    correct: bool
    gold: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What an evaluation measured, as shares of 1; `completions` are the greedy ones, in the order of the prompts.

    `gold` compares the rewards of the sampled completions, or of the greedy ones where none were sampled.
    """

    accuracy: float
    sampled_accuracy: float | None = None
    pass_at: Mapping[int, float] = field(default_factory=dict)
    completions: Sequence[GradedCompletion] = ()
    gold: GoldComparison | None = None

    def __str__(self) -> str:
        gold = f", gold reward {fmean(self.gold.gold):.3g}, proxy {fmean(self.gold.proxy):.3g}" if self.gold else ""
        return f"{self.accuracy:.1%}{gold}"

    @property
    def reward(self) -> float:
        """Mean reward of the greedy completions."""
        return fmean(completion.reward for completion in self.completions)

    def metrics(self) -> dict[str, float]:
        sampled = {} if self.sampled_accuracy is None else {"evaluation/sampled_accuracy": self.sampled_accuracy}
        passes = {f"evaluation/pass@{k}": share for k, share in self.pass_at.items()}
        gold = self.gold.metrics() if self.gold else {}
        return {"evaluation/accuracy": self.accuracy, "evaluation/reward": self.reward, **sampled, **passes, **gold}


async def evaluate(
    prompts: Sequence[Prompt],
    *,
    rollouts: RolloutSource,
    rewards: RewardScorer,
    sampling: Sampling,
    config: EvaluateConfig,
    gold: RewardScorer | None = None,
) -> Evaluation:
    """Sample and grade every prompt.

    Args:
        gold: the reward that counts, where the one that trains only stands for it.
        sampling: the training run's; its temperature is used for the sampled accuracy, and 0 for the greedy one.

    Raises:
        SampleNotScorable: when the reward service refuses a sample.
    """
    grader = _Grader(rollouts=rollouts, rewards=rewards, gold=gold, config=config)
    graded = await grader.grade_all(prompts, sampling.greedy)
    completions = [group[0] for group in graded]
    accuracy = fmean(completion.correct for completion in completions)
    if not config.num_samples:
        return Evaluation(accuracy=accuracy, completions=completions, gold=_compared(graded))
    sampled = await grader.grade_all(prompts, replace(sampling, num_samples=config.num_samples))
    correct = [sum(completion.correct for completion in group) for group in sampled]
    return Evaluation(
        accuracy=accuracy,
        sampled_accuracy=fmean(count / config.num_samples for count in correct),
        pass_at={k: fmean(pass_at_k(config.num_samples, count, k) for count in correct) for k in config.ks},
        completions=completions,
        gold=_compared(sampled),
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


def _compared(graded: Sequence[Sequence[GradedCompletion]]) -> GoldComparison | None:
    rewards = [(one.reward, one.gold) for group in graded for one in group if one.gold is not None]
    if not rewards:
        return None
    return GoldComparison(proxy=[proxy for proxy, _ in rewards], gold=[gold for _, gold in rewards])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Grader:
    """Samples prompts and has every completion scored."""

    rollouts: RolloutSource
    rewards: RewardScorer
    gold: RewardScorer | None
    config: EvaluateConfig

    async def grade_all(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[GradedCompletion]]:
        in_flight = asyncio.Semaphore(_MAX_GROUPS_IN_FLIGHT)

        async def grade(prompt: Prompt) -> list[GradedCompletion]:
            own = replace(prompt, id=f"evaluation-{prompt.row}")
            async with in_flight:
                return await self._grade(await self.rollouts.sample(SampleRequest(prompt=own, sampling=sampling)))

        return await asyncio.gather(*(grade(prompt) for prompt in prompts))

    async def _grade(self, group: RolloutGroup) -> list[GradedCompletion]:
        samples = to_reward_samples(group)
        rewards = _rewards(group, await self.rewards.score(samples))
        golds = _rewards(group, await self.gold.score(samples), of="gold, ") if self.gold else [None] * len(rewards)
        return [
            GradedCompletion(
                prompt=group.prompt.text,
                completion=rollout.completion,
                reward=reward.value,
                correct=is_correct(reward, self.config),
                gold=gold.value if gold else None,
            )
            for rollout, reward, gold in zip(group.rollouts, rewards, golds, strict=True)
        ]


def _rewards(group: RolloutGroup, outcomes: Sequence[Reward | Failure], *, of: str = "") -> list[Reward]:
    """The outcomes as rewards. Raises `SampleNotScorable` for the first that is none."""
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            raise SampleNotScorable(
                f"evaluation prompt, {of}row {group.prompt.row}: {outcome.message} ({outcome.code})"
            )
    return [outcome for outcome in outcomes if isinstance(outcome, Reward)]
