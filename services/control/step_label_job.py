"""A job that labels the steps of many completions: `step_labels.jsonl`, for the training of process reward models.

It must not know how a step is labelled. Invariants: a completion is in the log before it counts as done, and what is
done is not done again, also after a restart; labels made with different settings never stand in one folder; what is
written follows the order of the data.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from services.contracts.errors import SampleNotScorable, UserError
from services.contracts.records import Prompt, Rollout
from services.control.config import RunConfig
from services.control.event_log import EventLog
from services.control.job_log import open_job_log
from services.control.json_rows import write_rows
from services.control.labelled_completions import Completions
from services.control.step_labels import StepLabel, StepLabeller, StepLabelsConfig
from services.control.worklist import work_off

LABELS_FILE = "step_labels.jsonl"
_NOT_DECISIVE = ("labels.max_in_flight", "data.limit", "data.shuffle")
_DECISIVE = ("run.seed", "model.", "data.", "labels.", "reward.services", "evaluate.component", "evaluate.threshold")
_SAMPLING = ("samples_per_prompt", "temperature", "top_p", "top_k", "max_completion_tokens", "stop", "stop_token_ids")

Row = Mapping[str, Any]  # Any: JSON


class StepLabelsRunConfig(RunConfig):
    """Everything `trireme label-steps` can be told: what an evaluation can, and how steps are labelled."""

    labels: StepLabelsConfig = StepLabelsConfig()

    @model_validator(mode="after")
    def _continuations_differ(self) -> Self:
        if self.rollout.temperature == 0 and self.labels.continuations > 1:
            raise ValueError(
                f"rollout.temperature 0 makes the {self.labels.continuations} continuations of a step the same; raise "
                "it, or set labels.continuations to 1"
            )
        return self

    @model_validator(mode="after")
    def _completions_have_one_piece(self) -> Self:
        if self.rollout.environment is not None:
            raise ValueError(
                "rollout.environment is set, and label-steps continues completions from the middle, where no "
                "environment can take part; leave it out"
            )
        return self


@dataclass(slots=True)
class StepLabelJob:
    """What was found so far, by prompt and completion, and how many completions could not be scored since it began."""

    config: StepLabelsRunConfig
    log: EventLog
    rows: dict[str, Row] = field(default_factory=dict)
    num_failed: int = 0

    async def run(
        self,
        prompts: Sequence[Prompt],
        completions: Completions,
        labeller: StepLabeller,
        *,
        tell: Callable[[str], None],
    ) -> list[Row]:
        """Label what is not labelled yet, and write all rows, also when it has to stop; `tell` hears how far it is.

        Returns:
            The rows that were written: of every completion with steps.

        Raises:
            SampleNotScorable: more than `train.max_failed_prompts` completions could not be scored.
            TriremeError: whatever stopped sampling or scoring.
        """
        names = {prompt.id: [_name(prompt, index) for index in range(completions.count(prompt))] for prompt in prompts}
        waiting = [prompt for prompt in prompts if not self.rows.keys() >= set(names[prompt.id])]
        total = sum(map(len, names.values()))

        async def label_all(prompt: Prompt) -> None:
            for rollout in await completions.of(prompt):
                await self._label(prompt, rollout, labeller)

        try:
            await work_off(
                waiting,
                label_all,
                at_once=self.config.labels.max_in_flight,
                tell=lambda: tell(f"{len(self.rows)} of {total} completions labelled, {self.num_failed} failed"),
            )
        finally:
            found = [self.rows[name] for own in names.values() for name in own if name in self.rows]
            written = [row for row in found if row["steps"]]
            write_rows(self.config.run.dir / LABELS_FILE, written)
        return written

    async def _label(self, prompt: Prompt, rollout: Rollout, labeller: StepLabeller) -> None:
        name = _name(prompt, rollout.sample_index)
        if name in self.rows:
            return
        try:
            labels = await labeller.label(prompt, rollout)
        except SampleNotScorable as error:
            self._fail(name, error)
        else:
            row = to_row(prompt, rollout, labels, kind=self.config.labels.kind)
            self.log.note("labelled", completion=name, row=row)
            self.rows[name] = row

    def _fail(self, name: str, error: SampleNotScorable) -> None:
        self.log.note("failed", completion=name, reason=str(error))
        self.num_failed += 1
        if self.num_failed > self.config.train.max_failed_prompts:
            raise SampleNotScorable(
                f"{self.num_failed} completions could not be scored and train.max_failed_prompts is "
                f"{self.config.train.max_failed_prompts}; the last: {error}"
            ) from error


@contextmanager
def open_step_label_job(config: StepLabelsRunConfig) -> Iterator[StepLabelJob]:
    """Hold the job's folder, and read what is done there.

    Raises:
        UserError: another process holds the folder, or a run, another job or labels made with other settings are in it.
    """
    settings = _decisive_settings(config)
    with open_job_log(config.run.dir, "settings", settings) as (log, events):
        job = StepLabelJob(config=config, log=log)
        _refuse_other(events[0]["settings"], settings, config.run.dir)
        for event in events:
            if event["event"] == "labelled":
                job.rows[event["completion"]] = event["row"]
        yield job


def to_row(prompt: Prompt, rollout: Rollout, labels: Sequence[StepLabel], *, kind: str) -> Row:
    """One completion as the training of reward models reads it; a chat's prompt as its turns."""
    return {
        "prompt": [asdict(message) for message in prompt.messages] or prompt.text,
        "completion": rollout.completion,
        "steps": [
            {"start": step.start, "end": step.end, "label": step.soft if kind == "soft" else step.hard}
            for step in labels
        ],
        "counts": [{"correct": step.correct, "of": step.of} for step in labels],
        "reference": dict(prompt.reference),
        "row": prompt.row,
        "sample": rollout.sample_index,
    }


def _name(prompt: Prompt, sample_index: int) -> str:
    return f"{prompt.id}/{sample_index}"


def _decisive_settings(config: StepLabelsRunConfig) -> dict[str, Any]:  # Any: JSON
    """Those that labels depend on, by dotted name."""
    sections = config.model_dump(mode="json", exclude_none=True)
    names = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
    decisive = (*_DECISIVE, *(f"rollout.{name}" for name in _SAMPLING))
    return {name: value for name, value in names.items() if name.startswith(decisive) and name not in _NOT_DECISIVE}


def _refuse_other(before: Mapping[str, object], now: Mapping[str, object], folder: Path) -> None:
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise UserError(
                f"{folder} has labels made with {name} {before.get(name)!r}, and it is {now.get(name)!r}; set it back, "
                "or run.dir to a new folder"
            )
