"""The parts of a reward as a user writes them: sources, weights, gates, routes, ensembles, what becomes of a failure.

It must not load a reward or connect to one. Invariant: a part that was built names exactly one source, and parts that
were checked together have one way to route; what only the reward itself can tell is checked by `assembly`.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, field_validator, model_validator

from services.contracts.settings import Section
from services.transport.reward_settings import RewardClientConfig, check_addresses
from services.transport.reward_validation import NAME_PATTERN

OnFailure = Literal["retry", "fail", "skip_part"]
Scalar: TypeAlias = bool | int | float | str
OTHERWISE: Literal["otherwise"] = "otherwise"


class NamedKeys(Section):
    """A section that answers an unknown key with the nearest that it has."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: object) -> object:
        for key in values if isinstance(values, Mapping) else ():
            if key not in cls.model_fields:
                near = difflib.get_close_matches(str(key), cls.model_fields, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(cls.model_fields)}"
                raise ValueError(f"{key!r} is not a setting here; {hint}")
        return values


class RemoteConfig(NamedKeys, RewardClientConfig):
    """A reward service that runs elsewhere, and how this server calls it."""

    section: ClassVar[str] = "remote."

    addresses: tuple[str, ...] = Field(min_length=1)
    """Servers of one reward service, each HOST:PORT; calls go round all of them."""
    timeout_s: float = Field(default=10.0, gt=0)
    """Deadline of one call, in seconds; keep it well below that of whoever calls this server."""
    max_attempts: int = Field(default=2, ge=1)
    """Tries for a sample that fails retryably, and for a call that fails in the service, before the part has failed."""
    unavailable_budget_s: float = Field(default=10.0, ge=0)
    """How long to go on trying while no server answers, in seconds; then the part has failed, to be asked again."""

    @model_validator(mode="after")
    def _addresses_may_be_used(self) -> Self:
        check_addresses(self.addresses, self)
        return self


class NormaliseConfig(NamedKeys):
    """From a part's own scale to one of mean 0 and deviation 1, within ± `limit`."""

    mean: float | None = Field(default=None, allow_inf_nan=False)
    """Mean of the part's values, where it is known; with `std` it makes the scale a fixed one."""
    std: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Their standard deviation, likewise. Without the two, both are those of every value that the part has given, found
    anew whenever there are twice as many; each replica has its own."""
    warm_up: int = Field(default=256, ge=2)
    """Values before there are statistics that count; until then the part's own values are used, within ± `limit`."""
    limit: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    """Bound on what comes out, in standard deviations; also the range that the part then declares."""
    file: Path | None = None
    """Where running statistics are kept, so that a server that starts anew goes on from them; else they begin anew."""

    @model_validator(mode="after")
    def _fixed_or_running(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("give mean and std together (a fixed scale), or neither (running statistics)")
        if self.mean is not None and self.file is not None:
            raise ValueError("a fixed scale (mean and std) has no statistics to keep; leave out file")
        return self


class GateConfig(NamedKeys):
    """What a part must reach before the rest counts."""

    at_least: float = Field(allow_inf_nan=False)
    """The gate is open when the part's own value is at least this."""
    otherwise: float = Field(allow_inf_nan=False)
    """The total of a sample before which it stays closed; parts that are no gates are not asked about it."""


class RewardSource(NamedKeys):
    """One reward, from wherever it comes, on the scale that is wanted."""

    name: str = ""
    """A built-in reward, or the Python path of a user's: `my_reward.py:score` or `package.module:score`."""
    options: dict[str, Any] = Field(default_factory=dict)  # Any: each reward has its own, and checks them itself
    """The reward's own options: fields of a built-in's section, keyword arguments of a function."""
    isolate: bool | None = None
    """Score in child processes that can be killed when they hang; null leaves it to the reward."""
    remote: RemoteConfig | None = None
    """Instead of `name`: a reward service that runs elsewhere, with its own deadline."""
    label: str | None = None
    """What its component is called; the reward's own name where it is not given."""
    normalise: NormaliseConfig | None = None
    """Bring the values to mean 0 and deviation 1 first."""
    clip: tuple[float, float] | None = None
    """Then bound them from below and above."""
    on_failure: OnFailure = "retry"
    """What becomes of a sample that this part failed to score: `retry` fails it, to be asked again where the failure
    allows; `fail` fails it for good; `skip_part` weighs the other parts up and says so in the components."""

    @field_validator("label")
    @classmethod
    def _label_is_a_name(cls, label: str | None) -> str | None:
        if label is not None and not NAME_PATTERN.fullmatch(label):
            raise ValueError(f"{label!r} is no label; it has letters, digits and underscores only")
        return label

    @field_validator("clip")
    @classmethod
    def _clip_is_a_range(cls, clip: tuple[float, float] | None) -> tuple[float, float] | None:
        if clip is not None and not clip[0] < clip[1]:
            raise ValueError(f"{list(clip)} is no range; give the lower bound first")
        return clip

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sources = {name: getattr(self, name) for name in ("name", "remote", "ensemble") if hasattr(self, name)}
        given = [name for name, source in sources.items() if source]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(sources)}; given: {', '.join(given) or 'none'}")
        if given != ["name"] and (self.options or self.isolate is not None):
            raise ValueError(f"options and isolate are for a reward by name, not for {given[0]}")
        if given != ["name"] and self.label is None:
            raise ValueError(f"a part that is {given[0]} needs a label, under which its component is written down")
        return self


class EnsembleConfig(NamedKeys):
    """Several rewards of one meaning as one."""

    members: tuple[RewardSource, ...] = Field(min_length=2)
    """The rewards. One with `on_failure: skip_part` may be missing; the others then are the ensemble."""
    aggregate: Literal["mean", "minimum", "mean_minus_std"] = "mean"
    """Their mean, the least of them, or their mean less `penalty` times their standard deviation."""
    penalty: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """How much a disagreement of the members costs, for mean_minus_std."""


class RewardServiceConfig(RewardSource):
    """One part of the total: where it comes from, its share, and when it counts."""

    ensemble: EnsembleConfig | None = None
    """Instead of `name`: several rewards of one meaning as one."""
    weight: float | None = Field(default=None, allow_inf_nan=False)
    """Factor of this part in the total, which is the weighted sum; 1 where it is not given, 0 for a gate."""
    gate: GateConfig | None = None
    """Makes the part a gate; gates are asked first, in the order given."""
    when: Literal["otherwise"] | dict[str, tuple[Scalar, ...]] | None = None
    """For which samples the part counts: `{kind: math}` or `{kind: [math, logic]}` for those whose reference has that
    in the field `kind`, `otherwise` for those that no other part is for; all where it is not given."""

    @field_validator("when", mode="before")
    @classmethod
    def _one_field(cls, when: object) -> object:
        if not isinstance(when, Mapping):
            return when
        if len(when) != 1:
            raise ValueError(f"routes go by one field of the reference, not by {len(when)}")
        return {field: values if isinstance(values, list | tuple) else (values,) for field, values in when.items()}

    @model_validator(mode="after")
    def _gates_are_never_skipped(self) -> Self:
        if self.gate is not None and self.on_failure == "skip_part":
            raise ValueError("a gate that is skipped would let everything through; set on_failure to retry or fail")
        return self

    @property
    def share(self) -> float:
        """The factor in the total."""
        if self.weight is not None:
            return self.weight
        return 1.0 if self.gate is None else 0.0


def check_together(services: Sequence[RewardServiceConfig]) -> Sequence[RewardServiceConfig]:
    """Refuse parts that do not make one total.

    Raises:
        ValueError: saying what does not fit.
    """
    fields = sorted({field for service in services if isinstance(service.when, dict) for field in service.when})
    if len(fields) > 1:
        raise ValueError(f"all routes of a reward go by one field of the reference, not by {' and '.join(fields)}")
    if not fields and any(service.when == OTHERWISE for service in services):
        raise ValueError("a part has `when: otherwise`, and no other part says for which samples it is")
    if services and all(service.share == 0 for service in services):
        raise ValueError("every part has weight 0 (a gate has, where it is given none), so each total would be 0")
    return services


Parts: TypeAlias = Annotated[tuple[RewardServiceConfig, ...], AfterValidator(check_together)]
