"""Held-out accuracy: greedy, sampled, and pass@k, on the workers and reward service that train; and the gold reward.

It must not know how a policy is trained. Invariants: an evaluation leaves no trace in the run's state; its prompts have
ids of their own, so no training seed changes; proxy and gold are compared on the very same completions.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb
from statistics import fmean

from services.contracts.errors import SampleNotScorable
from services.contracts.interfaces import RewardScorer, RolloutSource
from services.contracts.records import Failure, Prompt, Reward, RolloutGroup, SampleRequest, Sampling
from services.control.evaluate_config import MAIN, HeldOutConfig
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

    Attributes:
        correct: how many of the `num_samples` sampled completions of each prompt are correct.
        ks: of pass@k.
        gold: compares the rewards of the sampled completions, or of the greedy ones where none were sampled.
    """

    completions: Sequence[GradedCompletion]
    num_samples: int = 0
    correct: Sequence[int] = ()
    ks: Sequence[int] = ()
    gold: GoldComparison | None = None

    def __str__(self) -> str:
        gold = f", gold reward {fmean(self.gold.gold):.3g}, proxy {fmean(self.gold.proxy):.3g}" if self.gold else ""
        return f"{self.accuracy:.1%}{gold}"

    @property
    def accuracy(self) -> float:
        """Share of the greedy completions that are correct."""
        return fmean(self.scores("accuracy"))

    @property
    def reward(self) -> float:
        """Mean reward of the greedy completions."""
        return fmean(self.scores("reward"))

    @property
    def sampled_accuracy(self) -> float | None:
        """None where nothing was sampled."""
        return fmean(self.scores("sampled_accuracy")) if self.num_samples else None

    @property
    def pass_at(self) -> Mapping[int, float]:
        return {k: fmean(self.scores(f"pass@{k}")) for k in self.ks} if self.num_samples else {}

    def scores(self, metric: str) -> list[float]:
        """What a metric is the mean of: a number for each prompt.

        Args:
            metric: accuracy, reward, sampled_accuracy or pass@k, of those that were measured.
        """
        if metric == "accuracy":
            return [float(completion.correct) for completion in self.completions]
        if metric == "reward":
            return [completion.reward for completion in self.completions]
        if metric == "sampled_accuracy":
            return [count / self.num_samples for count in self.correct]
        k = int(metric.removeprefix("pass@"))
        return [pass_at_k(self.num_samples, count, k) for count in self.correct]

    def metrics(self, family: str = MAIN) -> dict[str, float]:
        """Plain numbers, their names below `family`; the gold reward has a family of its own."""
        sampled = {} if self.sampled_accuracy is None else {"sampled_accuracy": self.sampled_accuracy}
        passes = {f"pass@{k}": share for k, share in self.pass_at.items()}
        named = {"accuracy": self.accuracy, "reward": self.reward, **sampled, **passes}
        gold = self.gold.metrics() if self.gold else {}
        return {f"{family}/{name}": value for name, value in named.items()} | gold


async def evaluate(
    prompts: Sequence[Prompt],
    *,
    rollouts: RolloutSource,
    rewards: RewardScorer,
    sampling: Sampling,
    config: HeldOutConfig,
    gold: RewardScorer | None = None,
    name: str = MAIN,
) -> Evaluation:
    """Sample and grade every prompt.

    Args:
        gold: the reward that counts, where the one that trains only stands for it.
        name: what the evaluation is called; its prompts' ids begin so.
        sampling: the training run's; its temperature, or the evaluation's own, is used for the sampled accuracy, and 0
            for the greedy one.

    Raises:
        SampleNotScorable: when the reward service refuses a sample.
    """
    grader = _Grader(rollouts=rollouts, rewards=rewards, gold=gold, config=config, name=name)
    sampling = replace(
        sampling,
        num_samples=config.num_samples,
        temperature=config.temperature or sampling.temperature,
        max_completion_tokens=config.max_completion_tokens or sampling.max_completion_tokens,
    )
    graded = await grader.grade_all(prompts, sampling.greedy)
    completions = [group[0] for group in graded]
    if not config.num_samples:
        return Evaluation(completions=completions, gold=_compared(graded))
    sampled = await grader.grade_all(prompts, sampling)
    return Evaluation(
        completions=completions,
        num_samples=config.num_samples,
        correct=[sum(completion.correct for completion in group) for group in sampled],
        ks=config.ks,
        gold=_compared(sampled),
    )


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Chance that k of the samples, drawn without replacement, hold a correct one: 1 − C(n−c, k) / C(n, k).

    The unbiased estimator of Chen et al., arXiv 2107.03374, equation 1.
    """
    return 1.0 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def is_correct(reward: Reward, config: HeldOutConfig) -> bool:
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
    config: HeldOutConfig
    name: str

    async def grade_all(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[GradedCompletion]]:
        in_flight = asyncio.Semaphore(_MAX_GROUPS_IN_FLIGHT)

        async def grade(prompt: Prompt) -> list[GradedCompletion]:
            own = replace(prompt, id=f"{self.name}-{prompt.row}")
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
                f"held-out prompt {group.prompt.id}, {of}row {group.prompt.row}: {outcome.message} ({outcome.code})"
            )
    return [outcome for outcome in outcomes if isinstance(outcome, Reward)]
