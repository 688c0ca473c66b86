"""Several rewards of one meaning as one: their mean, the least of them, or a mean that disagreement lowers.

mean − penalty · std is the uncertainty-weighted objective of Coste et al., arXiv 2310.02743 (with the variance there;
the standard deviation here keeps the unit of the reward). It must not know how a member is scored. Invariant: a member
that failed is either missing, and marked so, or the whole has failed; std is that of the members present, over all of
them (not n − 1).
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from reward_server.composition import refuse_equal_labels
from reward_server.part_config import EnsembleConfig
from reward_server.parts import Part, Tally, Versions, any_gives_steps, counters_of
from reward_server.ranges import Range, of_mean, of_mean_minus_std, of_minimum, within
from reward_server.steps import merge_steps
from services.contracts.records import Failure, FailureCode, Reward, RewardDescription, RewardSample, StepReward
from services.transport.reward_validation import fault_in_reward


class EnsembleScorer:
    """Scores with every member, side by side.

    Args:
        name: what the ensemble is called.

    Raises:
        UserError: two members have one label.
    """

    def __init__(self, name: str, members: Sequence[Part], config: EnsembleConfig) -> None:
        refuse_equal_labels(members)
        self._name = name
        self._members = tuple(members)
        self._versions = Versions(self._members)
        self._config = config
        self.batched = any(member.scorer.batched for member in members)

    @property
    def description(self) -> RewardDescription:
        low, high = self._bounds()
        penalty = f"({self._config.penalty:g})" if self._config.aggregate == "mean_minus_std" else ""
        return RewardDescription(
            name=self._name,
            version=f"{self._config.aggregate}{penalty}:" + ",".join(member.version for member in self._members),
            needs_token_ids=any(member.scorer.description.needs_token_ids for member in self._members),
            minimum=low if math.isfinite(low) else None,
            maximum=high if math.isfinite(high) else None,
            gives_steps=any_gives_steps(self._members) if self._config.aggregate == "mean" else False,
        )

    async def start(self) -> None:
        await asyncio.gather(*(member.scorer.start() for member in self._members))

    async def close(self) -> None:
        await asyncio.gather(*(member.scorer.close() for member in self._members))

    def counters(self) -> Mapping[str, float]:
        return counters_of(self._members)

    async def score(self, samples: Sequence[RewardSample]) -> list[Reward | Failure]:
        columns = await asyncio.gather(*(member.score(samples) for member in self._members))
        description, bounds = self.description, self._bounds()
        tallies = [Tally(sample=sample, parts=self._members) for sample in samples]
        for tally, *row in zip(tallies, *columns, strict=True):
            for member, outcome in zip(self._members, row, strict=True):
                tally.take(member, outcome)
        self._versions.note(tallies)
        return [tally.failure() or self._aggregated(tally, description, bounds) for tally in tallies]

    def _aggregated(self, tally: Tally, description: RewardDescription, bounds: Range) -> Reward | Failure:
        values = [scored.value for scored in tally.scored.values()]
        value = _AGGREGATES[self._config.aggregate](values, self._config.penalty)
        reward = Reward(
            value=within(value, bounds) if math.isfinite(value) else value,  # Against rounding.
            components=tally.components() | {"std": _spread(values)},
            steps=_mean_steps(tally) if self._config.aggregate == "mean" else (),
            version=self._versions.of(tally),
        )
        fault = fault_in_reward(reward, description=description, completion=tally.sample.completion)
        return reward if fault is None else Failure(code=FailureCode.INTERNAL, message=f"the ensemble: {fault}")

    def _bounds(self) -> Range:
        required = [member.bounds for member in self._members if not member.is_optional]
        optional = [member.bounds for member in self._members if member.is_optional]
        match self._config.aggregate:
            case "mean":
                return of_mean(required, optional)
            case "minimum":
                return of_minimum(required, optional)
        return of_mean_minus_std(required, optional, self._config.penalty)


def _mean(values: Sequence[float]) -> float:
    return sum(value / len(values) for value in values)


def _spread(values: Sequence[float]) -> float:
    return math.sqrt(_mean([(value - _mean(values)) * (value - _mean(values)) for value in values]))


_AGGREGATES: Mapping[str, Callable[[Sequence[float], float], float]] = {
    "mean": lambda values, penalty: _mean(values),
    "minimum": lambda values, penalty: min(values),
    "mean_minus_std": lambda values, penalty: _mean(values) - penalty * _spread(values),
}


def _mean_steps(tally: Tally) -> tuple[StepReward, ...]:
    return merge_steps(
        replace(step, value=step.value / len(tally.scored))
        for scored in tally.scored.values()
        for step in scored.reward.steps
    )
