"""What a run measured: a row of numbers for each step, and a few completions to read.

This is the only place where metrics leave a run. It must not know how a number came about. Invariants: each step has
one row, also after a resume, which voids the rows of steps that no checkpoint holds; a number that is not finite is
null in the file and NaN when it is read back.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator

from services.contracts.errors import UserError
from services.contracts.records import (
    NOT_SAMPLED,
    FinishReason,
    Json,
    Message,
    Reward,
    Rollout,
    ScoredGroup,
    StepReward,
)
from services.contracts.settings import Section
from services.control.metric_sinks import SINKS
from services.control.run_folder import METRICS_FILE
from services.control.step_log import Line, StepLog, read_lines

SAMPLES_FILE = "samples.jsonl"


class MetricsConfig(Section):
    """Where a run's numbers go, and how many completions are kept to read."""

    sinks: tuple[str, ...] = ("tensorboard",)
    """Destinations besides metrics.jsonl, which is always written: tensorboard (a folder in run.dir), wandb."""
    samples_per_step: int = Field(default=4, ge=0)
    """Completions of each step written to samples.jsonl with their rewards, for the report."""

    @field_validator("sinks")
    @classmethod
    def _known(cls, sinks: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(sinks) - set(SINKS))
        if unknown:
            raise ValueError(f"{unknown} are not destinations; there are {sorted(SINKS)}")
        return sinks


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsRow:
    """One step's numbers, `time_s` seconds after the run began (time between a stop and a resume not counted)."""

    step: int
    time_s: float
    metrics: Mapping[str, float]


class MetricsWriter:
    """Writes a row for each step to `metrics.jsonl` and to the named sinks.

    Args:
        folder: the run's folder.
        sinks: names from `SINKS`.
        resume_step: steps trained so far; rows of later steps are dropped.
        run_name: what the sinks call the run.

    Raises:
        UserError: a sink that is not known, or whose package is not installed.
    """

    def __init__(self, folder: Path, sinks: Sequence[str], *, resume_step: int = 0, run_name: str = "run") -> None:
        unknown = sorted(set(sinks) - set(SINKS))
        if unknown:
            raise UserError(f"metrics.sinks: {unknown} are not destinations; choose from {sorted(SINKS)}")
        self._log = StepLog(folder / METRICS_FILE, resume_step=resume_step)
        self._sinks = [SINKS[name](folder, run_name=run_name, resume_step=resume_step) for name in sinks]
        time_before = self._log.last_line["time_s"] if self._log.last_line else 0.0
        self._started = time.monotonic() - time_before
        self._last_step = resume_step

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the row of a step that has none yet."""
        assert step > self._last_step, f"step {step} was written already: the last is {self._last_step}"
        self._last_step = step
        elapsed = round(time.monotonic() - self._started, 3)
        self._log.append({"step": step, "time_s": elapsed, **metrics})
        for sink in self._sinks:
            sink.record(step, metrics)

    def close(self) -> None:
        self._log.close()
        for sink in self._sinks:
            sink.close()


def read_metrics(folder: Path) -> list[MetricsRow]:
    """The rows of a run in order of steps; none when it wrote none. Raises `UserError` on a damaged file."""
    return [_row(line) for line in read_lines(folder / METRICS_FILE)]


def _row(line: Mapping[str, float | None]) -> MetricsRow:
    numbers = _numbers(line)
    return MetricsRow(step=int(numbers.pop("step")), time_s=numbers.pop("time_s"), metrics=numbers)


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRecord:
    """One completion as people read it: what it answers, what it earned, and who sampled it.

    Attributes:
        prompt: the text that the policy continued.
        messages: the chat behind it; empty for a plain-text prompt.
    """

    step: int
    prompt_id: str
    sample_index: int
    prompt: str
    messages: Sequence[Message] = ()
    completion: str
    reward: float
    components: Mapping[str, float] = field(default_factory=dict)
    reward_version: str = ""
    steps: Sequence[StepReward] = ()
    turns: Sequence[Message] = ()
    finish_reason: FinishReason
    policy_version: int
    reference: Mapping[str, Json] = field(default_factory=dict)


class SampleLog:
    """Writes some completions of each step to `samples.jsonl`: the prompt as whatever learns from data reads it, a
    chat's as its turns, with the text that the policy continued as prompt_text.

    Args:
        folder: the run's folder.
        samples_per_step: most completions of one step.
        resume_step: steps trained so far; samples of later steps are dropped.
    """

    def __init__(self, folder: Path, *, samples_per_step: int, resume_step: int = 0) -> None:
        self._samples_per_step = samples_per_step
        self._log = StepLog(folder / SAMPLES_FILE, resume_step=resume_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def record(self, step: int, groups: Sequence[ScoredGroup]) -> None:
        """Write the first completion of each group, then the second of each, until there are enough."""
        for rollout, reward, group in islice(_by_sample_index(groups), self._samples_per_step):
            self._log.append(_to_line(_to_record(step, rollout, reward, group)))

    def close(self) -> None:
        self._log.close()


def read_samples(folder: Path) -> list[SampleRecord]:
    """The completions a run kept, in order of steps. Raises `UserError` on a damaged file."""
    return list(map(to_sample, read_lines(folder / SAMPLES_FILE)))


def to_sample(line: Line) -> SampleRecord:
    """The completion in a line of `samples.jsonl`."""
    prompt = line["prompt"]
    return SampleRecord(
        **{
            **{name: value for name, value in line.items() if name != "prompt_text"},
            "prompt": line.get("prompt_text", prompt),
            "messages": () if isinstance(prompt, str) else [Message(**turn) for turn in prompt],
            "reward": _number(line["reward"]),
            "components": _numbers(line["components"]),
            "turns": [Message(**turn) for turn in line.get("turns", ())],
            "steps": [StepReward(**step | {"value": _number(step["value"])}) for step in line.get("steps", ())],
        }
    )


def _to_line(record: SampleRecord) -> Line:
    line = asdict(record)
    messages = line.pop("messages")
    return line | {"prompt": messages, "prompt_text": record.prompt} if messages else line


def _by_sample_index(groups: Sequence[ScoredGroup]) -> Iterator[tuple[Rollout, Reward, ScoredGroup]]:
    for index in range(max((len(group.rewards) for group in groups), default=0)):
        for group in groups:
            if index < len(group.rewards):
                yield group.group.rollouts[index], group.rewards[index], group


def _to_record(step: int, rollout: Rollout, reward: Reward, group: ScoredGroup) -> SampleRecord:
    return SampleRecord(
        step=step,
        prompt_id=rollout.prompt_id,
        sample_index=rollout.sample_index,
        prompt=group.group.prompt.text,
        messages=group.group.prompt.messages,
        completion=rollout.completion,
        reward=reward.value,
        components=dict(reward.components),
        reward_version=reward.version,
        steps=reward.steps,
        turns=rollout.turns,
        finish_reason=rollout.finish_reason,
        policy_version=max(rollout.policy_versions, default=NOT_SAMPLED),
        reference=dict(group.group.prompt.reference),
    )
