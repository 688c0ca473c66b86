"""Several rewards as one: gates, then the weighted sum of the parts that a sample's route has, each a component.

    reference ── route ──▶ parts that apply ──▶ gates, in order ──▶ all others, side by side ──▶ Σ weight · value

It must not know how a part is scored. Invariants: a sample whose part failed has failed, unless that part may be
skipped; a value adds up the parts in the order given and lies within the declared range.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from reward_server.parts import Part, Tally, Versions, any_gives_steps, counters_of
from reward_server.ranges import Range, hull, of_sum, scaled, within
from reward_server.routing import Routing
from reward_server.steps import merge_steps
from services.contracts.errors import UserError
from services.contracts.records import Failure, FailureCode, Reward, RewardDescription, RewardSample
from services.transport.reward_validation import fault_in_reward

ANY_RANGE = RewardDescription(name="total")
"""Of a sum before it is brought into its own range."""


class CompositeScorer:
    """The total of its parts.

    Raises:
        UserError: two parts have one label, under which their components would collide.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        refuse_equal_labels(parts)
        self._parts = tuple(parts)
        self._routing = Routing(self._parts)
        self._versions = Versions(self._parts)
        self._declared: list[Range] = []
        self._route_bounds: dict[tuple[Part, ...], Range] = {}
        self.batched = any(part.scorer.batched for part in parts)

    @property
    def description(self) -> RewardDescription:
        """Needs what any part needs; its range holds the total on every route, with gates open and closed."""
        descriptions = [part.scorer.description for part in self._parts]
        low, high = hull(self._bounds().values())
        return RewardDescription(
            name="_".join(part.label for part in self._parts),
            version="+".join(f"{part.weight:g}*{part.version}" for part in self._parts),
            needs_token_ids=any(description.needs_token_ids for description in descriptions),
            minimum=low if math.isfinite(low) else None,
            maximum=high if math.isfinite(high) else None,
            gives_steps=any_gives_steps([part for part in self._parts if part.weight]),
        )

    async def start(self) -> None:
        await asyncio.gather(*(part.scorer.start() for part in self._parts))

    async def close(self) -> None:
        await asyncio.gather(*(part.scorer.close() for part in self._parts))

    def counters(self) -> Mapping[str, float]:
        return counters_of(self._parts)

    async def score(self, samples: Sequence[RewardSample]) -> list[Reward | Failure]:
        tallies = [self._routing.tally(sample) for sample in samples]
        for part in self._parts:
            if part.gate is not None:
                await ask(part, undecided(tallies))
        rest = undecided(tallies)  # Once, so that no part is spared because another was quick to fail.
        asking = [ask(part, rest) for part in self._parts if part.gate is None]
        await (asking[0] if len(asking) == 1 else asyncio.gather(*asking))  # One alone needs no task.
        self._versions.note(tallies)
        bounds = self._bounds()
        return [outcome_of(tally, bounds, version=self._versions.of(tally)) for tally in tallies]

    def _bounds(self) -> dict[tuple[Part, ...], Range]:
        """The range on each route; found again when a part, which may be another server's, declares another."""
        declared = [part.bounds for part in self._parts]
        if declared != self._declared:
            self._declared = declared
            self._route_bounds = {route: route_bounds(route) for route in self._routing.routes()}
        return self._route_bounds


def undecided(tallies: Sequence[Tally]) -> list[Tally]:
    return [tally for tally in tallies if tally.is_open]


async def ask(part: Part, tallies: Sequence[Tally]) -> None:
    """Have `part` score those of the samples that it applies to."""
    asked = [tally for tally in tallies if part in tally.parts]
    outcomes = await part.score([tally.sample for tally in asked])
    for tally, outcome in zip(asked, outcomes, strict=True):
        tally.take(part, outcome)


def outcome_of(tally: Tally, bounds: Mapping[tuple[Part, ...], Range], *, version: str) -> Reward | Failure:
    """The sample's total, or why it has none."""
    failure = tally.failure()
    if failure is not None:
        return failure
    if tally.closed is not None:
        return Reward(value=tally.closed.otherwise, components=tally.components(), version=version)
    total = weighted_sum(tally, version=version)
    fault = fault_in_reward(total, description=ANY_RANGE, completion=tally.sample.completion)
    if fault is not None:
        return Failure(code=FailureCode.INTERNAL, message=f"the weighted sum: {fault}")
    return replace(total, value=within(total.value, bounds[tally.parts]))  # Against rounding.


def weighted_sum(tally: Tally, *, version: str) -> Reward:
    """The total over the parts that gave a value; the weights of skipped ones are shared out to these."""
    present = [(part, tally.scored[part]) for part in tally.parts if part in tally.scored]
    weight = _whole([part for part, _ in present])
    factor = _whole(tally.parts) / weight if weight else 1.0  # Exactly 1 where nothing is missing.
    return Reward(
        value=sum(factor * part.weight * scored.value for part, scored in present),
        components=tally.components(),
        steps=merge_steps(
            replace(step, value=factor * part.weight * step.value)
            for part, scored in present
            for step in scored.reward.steps
        ),
        version=version,
    )


def route_bounds(parts: Sequence[Part]) -> Range:
    """The range of the total of samples to which these parts apply."""
    closed = [(part.gate.otherwise, part.gate.otherwise) for part in parts if part.gate is not None]
    weighted = [part for part in parts if part.weight]
    if not weighted:
        return hull([(0.0, 0.0), *closed])
    required = [part for part in weighted if not part.is_optional]
    optional = [part for part in weighted if part.is_optional]
    total = of_sum(
        [scaled(part.bounds, part.weight) for part in required],
        [scaled(part.bounds, part.weight) for part in optional],
        [abs(part.weight) for part in (*required, *optional)],
    )
    return hull([total, *closed])


def refuse_equal_labels(parts: Sequence[Part]) -> None:
    """Raises `UserError` when two parts are called the same."""
    labels = [part.label for part in parts]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UserError(f"two rewards are named {', '.join(twice)}; give each part a label of its own")


def _whole(parts: Sequence[Part]) -> float:
    return sum(abs(part.weight) for part in parts)
