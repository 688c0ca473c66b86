"""One part of a composed reward, and what the parts of one sample gave.

It must not know how a part is scored, nor how values are put together. Invariants: a part's raw value is what its
scorer returned; a part that failed has no value, whatever its policy says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from reward_server.part_config import GateConfig, OnFailure
from reward_server.ranges import UNBOUNDED, Range
from reward_server.scorer import Scorer
from reward_server.shaping import Shaping
from services.contracts.records import Failure, Json, Reward, RewardSample


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """What a part's scorer returned, and the value that counts after shaping.

    Attributes:
        version: of what scored and of the scale that it was brought to; empty where neither has one.
    """

    reward: Reward
    value: float
    version: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """One reward in a whole.

    Attributes:
        label: the name of its component.
        weight: its factor in a weighted sum.
        settings: a digest of everything here that changes scores; part of the whole's version.
        when: the field of the reference and its values for which the part counts; `"otherwise"`; None for all samples.
    """

    scorer: Scorer
    label: str
    weight: float = 1.0
    shaping: Shaping = field(default_factory=Shaping)
    on_failure: OnFailure = "retry"
    gate: GateConfig | None = None
    when: Mapping[str, Sequence[Json]] | str | None = None
    settings: str = ""

    @property
    def version(self) -> str:
        """The label with everything that tells this part's scores from another's."""
        return f"{self.label}@{self.scorer.description.version}" + (f"-{self.settings}" if self.settings else "")

    @property
    def is_optional(self) -> bool:
        return self.on_failure == "skip_part"

    @property
    def bounds(self) -> Range:
        """The range of the value that counts."""
        description = self.scorer.description
        low = UNBOUNDED[0] if description.minimum is None else description.minimum
        high = UNBOUNDED[1] if description.maximum is None else description.maximum
        return self.shaping.bounds((low, high))

    async def score(self, samples: Sequence[RewardSample]) -> list[Scored | Failure]:
        """One outcome per sample, in order."""
        outcomes = list(await self.scorer.score(samples)) if samples else []
        scale = self.shaping.scale_version  # Before these values may change it.
        values = iter(self.shaping.shape([outcome.value for outcome in outcomes if isinstance(outcome, Reward)]))
        return [
            Scored(reward=outcome, value=next(values), version=_joined(outcome.version, scale))
            if isinstance(outcome, Reward)
            else self._failed(outcome)
            for outcome in outcomes
        ]

    def _failed(self, failure: Failure) -> Failure:
        return replace(
            failure,
            message=f"{self.label}: {failure.message}",
            retryable=failure.retryable and self.on_failure != "fail",
        )


def _joined(*versions: str) -> str:
    return "-".join(version for version in versions if version)


def counters_of(parts: Sequence[Part]) -> dict[str, float]:
    """What the parts count, each under its label."""
    return {f"{part.label}/{name}": count for part in parts for name, count in part.scorer.counters().items()}


def any_gives_steps(parts: Sequence[Part]) -> bool | None:
    """Whether what is made of the parts may score single steps; None where some part does not say."""
    said = {part.scorer.description.gives_steps for part in parts}
    return True if True in said else None if None in said else False


@dataclass(kw_only=True, slots=True)
class Tally:
    """What the parts of one sample gave so far.

    Attributes:
        parts: those that apply to the sample, in order.
        closed: the gate that it did not pass.
    """

    sample: RewardSample
    parts: tuple[Part, ...]
    scored: dict[Part, Scored] = field(default_factory=dict)
    skipped: dict[Part, Failure] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    closed: GateConfig | None = None

    @property
    def is_open(self) -> bool:
        """Whether further parts can make a difference."""
        return not self.failures and self.closed is None

    def take(self, part: Part, outcome: Scored | Failure) -> None:
        if isinstance(outcome, Scored):
            self.scored[part] = outcome
            if part.gate is not None and outcome.reward.value < part.gate.at_least:
                self.closed = self.closed or part.gate
        elif part.is_optional:
            self.skipped[part] = outcome
        else:
            self.failures.append(outcome)

    def failure(self) -> Failure | None:
        """Why the sample has no value; of several reasons the one that lasts, as it succeeds only if each passes."""
        failures = self.failures
        if not any(part.weight for part in self.scored):  # Nothing is left that could stand for what was skipped.
            failures = failures or [failure for part, failure in self.skipped.items() if part.weight]
        return min(failures, key=lambda failure: failure.retryable, default=None)

    def components(self) -> dict[str, float]:
        """The parts' own values, and under `label/…` what they are made of, what counts, and whether one is missing."""
        components: dict[str, float] = {}
        for part in self.parts:
            if scored := self.scored.get(part):
                components[part.label] = scored.reward.value
                components |= {f"{part.label}/{name}": value for name, value in scored.reward.components.items()}
                components |= {f"{part.label}/shaped": scored.value} if part.shaping.changes_values else {}
            if part.is_optional:
                components[f"{part.label}/skipped"] = float(part in self.skipped)
        return components


class Versions:
    """Names the version of each of `parts` in a score, as far as the part has versions.

    Scores that belong together have to be of one version. A part that was not asked about a sample (a closed gate,
    another route) stands in its version as last seen, so that such a sample agrees with its neighbours.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._last: dict[Part, str] = {}

    def note(self, tallies: Sequence[Tally]) -> None:
        """What the parts gave in a batch, before any of it is named."""
        self._last |= {part: scored.version for tally in tallies for part, scored in tally.scored.items()}

    def of(self, tally: Tally) -> str:
        named = {part: scored.version for part, scored in tally.scored.items()}
        versions = {part: named.get(part, self._last.get(part)) for part in self._parts}
        return "+".join(f"{part.label}@{version}" for part, version in versions.items() if version)
