"""Several rewards as one: the weighted sum, with each raw part as a component.

It must not know how a part is scored. Invariants: a sample whose any part failed has failed, and the value adds up the
parts in the order given, so it never leaves the range that is declared by the same sum over the parts' ranges.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from reward_server.scorer import Scorer
from services.contracts.errors import UserError
from services.contracts.records import Failure, FailureCode, Reward, RewardDescription, RewardSample, StepReward
from services.transport.reward_validation import fault_in_reward


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightedPart:
    """One reward and its factor in the total."""

    scorer: Scorer
    weight: float

    @property
    def name(self) -> str:
        return self.scorer.description.name


class WeightedScorer:
    """Scores every sample with every part, side by side.

    Raises:
        UserError: two parts have one name, under which their components would collide.
    """

    def __init__(self, parts: Sequence[WeightedPart]) -> None:
        names = [part.name for part in parts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"two rewards are named {', '.join(twice)}; each part of a total needs a name of its own")
        self._parts = tuple(parts)
        self.description = describe(parts)
        self.batched = any(part.scorer.batched for part in parts)

    async def start(self) -> None:
        await asyncio.gather(*(part.scorer.start() for part in self._parts))

    async def close(self) -> None:
        await asyncio.gather(*(part.scorer.close() for part in self._parts))

    async def score(self, samples: Sequence[RewardSample]) -> list[Reward | Failure]:
        columns = await asyncio.gather(*(part.scorer.score(samples) for part in self._parts))
        rows = zip(samples, *columns, strict=True)
        return [self._total(sample, outcomes) for sample, *outcomes in rows]

    def _total(self, sample: RewardSample, outcomes: Sequence[Reward | Failure]) -> Reward | Failure:
        failures = [
            (part.name, outcome)
            for part, outcome in zip(self._parts, outcomes, strict=True)
            if isinstance(outcome, Failure)
        ]
        if failures:
            # The sample succeeds later only if every failed part may.
            name, failure = min(failures, key=lambda named: named[1].retryable)
            return Failure(code=failure.code, message=f"{name}: {failure.message}", retryable=failure.retryable)
        rewards = [outcome for outcome in outcomes if isinstance(outcome, Reward)]
        total = weighted_sum(self._parts, rewards)
        fault = fault_in_reward(total, description=self.description, completion=sample.completion)
        return total if fault is None else Failure(code=FailureCode.INTERNAL, message=f"the weighted sum: {fault}")


def weighted_sum(parts: Sequence[WeightedPart], rewards: Sequence[Reward]) -> Reward:
    """The total, with component `name` for each part's value and `name/component` for a part's own components."""
    components: dict[str, float] = {}
    for part, reward in zip(parts, rewards, strict=True):
        components[part.name] = reward.value
        components |= {f"{part.name}/{name}": value for name, value in reward.components.items()}
    pairs = list(zip(parts, rewards, strict=True))
    versions = [f"{part.name}@{reward.version}" for part, reward in pairs if reward.version]
    return Reward(
        value=sum(part.weight * reward.value for part, reward in pairs),
        components=components,
        steps=tuple(
            StepReward(start=step.start, end=step.end, value=part.weight * step.value)
            for part, reward in pairs
            for step in reward.steps
        ),
        version="+".join(versions),
    )


def describe(parts: Sequence[WeightedPart]) -> RewardDescription:
    """The total's description: needs what any part needs, and ranges over the weighted ranges' sum."""
    descriptions = [part.scorer.description for part in parts]
    return RewardDescription(
        name="_".join(description.name for description in descriptions),
        version="+".join(f"{part.weight:g}*{part.name}@{part.scorer.description.version}" for part in parts),
        needs_token_ids=any(description.needs_token_ids for description in descriptions),
        minimum=_bound(parts, lowest=True),
        maximum=_bound(parts, lowest=False),
    )


def _bound(parts: Sequence[WeightedPart], *, lowest: bool) -> float | None:
    total = 0.0
    for part in parts:
        low, high = part.scorer.description.minimum, part.scorer.description.maximum
        bound = low if lowest == (part.weight >= 0) else high  # A negative weight turns the range round.
        if bound is None:
            return None
        total += part.weight * bound
    return total
