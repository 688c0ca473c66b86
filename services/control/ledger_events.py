"""The events of a run's ledger, as records that are read back from `events.jsonl`.

It must not know who writes them or what they must obey. Invariants: `seq` is the place of an event in the whole ledger,
from 0, across every process of the run; fields that are not listed here are passed over, and so is what an event that
has no record here says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from services.contracts.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class _Event:
    """Attributes: `seq`, the event's place from 0; `time`, wall-clock seconds."""

    seq: int
    time: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStarted(_Event):
    """A process of the run began."""

    event: Literal["run_started"] = "run_started"
    pid: int
    max_staleness: int
    prompts_per_step: int
    num_steps: int
    samples_per_prompt: int
    seed: int
    reward: Mapping[str, str | None] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumed(_Event):
    """The state after `step` was restored: what was written after event `kept` is void, but for facts about workers."""

    event: Literal["resumed"] = "resumed"
    step: int
    kept: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Admitted(_Event):
    """A prompt was drawn from the stream."""

    event: Literal["admitted"] = "admitted"
    prompt: str
    position: int
    version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Dispatched(_Event):
    """A worker that serves `version` was given a prompt; `attempt` is unique within the process that writes."""

    event: Literal["dispatched"] = "dispatched"
    prompt: str
    attempt: int
    worker: int
    version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Requeued(_Event):
    """An attempt ended without a group; its prompt will be dispatched again."""

    event: Literal["requeued"] = "requeued"
    prompt: str
    attempt: int
    worker: int
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fenced(_Event):
    """A late reply of an attempt that had ended was ignored."""

    event: Literal["fenced"] = "fenced"
    attempt: int
    worker: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted(_Event):
    """A group is sampled, and scored by `reward_version`; `lowest_version` is that of its oldest token."""

    event: Literal["accepted"] = "accepted"
    prompt: str
    attempt: int
    lowest_version: int
    rewards: tuple[float | None, ...]
    reward_version: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Filtered(_Event):
    """A prompt ended without being trained, by a rule, when `step` was made."""

    event: Literal["filtered"] = "filtered"
    prompt: str
    step: int = 0
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed(_Event):
    """A prompt ended for good without a group."""

    event: Literal["failed"] = "failed"
    prompt: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained(_Event):
    """A prompt ended in a learner step."""

    event: Literal["trained"] = "trained"
    prompt: str
    step: int
    staleness: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Published(_Event):
    """The learner made a version of the weights available."""

    event: Literal["published"] = "published"
    version: int
    generation: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined(_Event):
    """A rollout worker's process is ready; it serves nothing yet."""

    event: Literal["joined"] = "joined"
    worker: int
    node: str = ""
    pid: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Synced(_Event):
    """A worker acknowledged weights: their checksums, and how far it was from the learner on the canary."""

    event: Literal["synced"] = "synced"
    worker: int
    version: int
    generation: int
    checksums_agree: bool
    canary: float | None
    tolerance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Left(_Event):
    """A worker is gone: died, killed or drained."""

    event: Literal["left"] = "left"
    worker: int
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint(_Event):
    """The state after `step` is committed."""

    event: Literal["checkpoint"] = "checkpoint"
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerLost(_Event):
    """A rank of the learner is gone."""

    event: Literal["learner_lost"] = "learner_lost"
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerRestarted(_Event):
    """All ranks of the learner are back, in the state after `step`."""

    event: Literal["learner_restarted"] = "learner_restarted"
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEnded(_Event):
    """A process of the run ended; `error` is the name of the typed error that ended it."""

    event: Literal["run_ended"] = "run_ended"
    how: Literal["finished", "interrupted", "drained", "failed"]
    error: str | None = None
    exit_code: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Other(_Event):
    """An event that has no record here: an operator's `paused`, `scaled` and the like."""

    event: str


_Known = (
    RunStarted
    | Resumed
    | Admitted
    | Dispatched
    | Requeued
    | Fenced
    | Accepted
    | Filtered
    | Failed
    | Trained
    | Published
    | Joined
    | Synced
    | Left
    | Checkpoint
    | LearnerLost
    | LearnerRestarted
    | RunEnded
)
Event = _Known | Other

_KNOWN: TypeAdapter[_Known] = TypeAdapter(Annotated[_Known, Field(discriminator="event")])
_OTHER: TypeAdapter[Other] = TypeAdapter(Other)


def parse_event(line: bytes) -> Event:
    """One line of the ledger. Raises `UserError` saying what is wrong with it."""
    try:
        return _KNOWN.validate_json(line)
    except ValidationError as error:
        if error.errors()[0]["type"] != "union_tag_invalid":
            raise UserError(_describe(error)) from error
    try:
        return _OTHER.validate_json(line)
    except ValidationError as error:
        raise UserError(_describe(error)) from error


def _describe(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in fault["loc"])
    return f"{field}: {fault['msg']}" if field else fault["msg"]
