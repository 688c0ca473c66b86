"""What a row of judged completions says: pairs, rankings, labelled outcomes, labelled steps.

It must not know tokenizers, losses or models. Invariant: a row that was read is complete and consistent; what is wrong
with one is told by file, row and column.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from rollout_workers.judged_answers import Answer, AnswerReader, JudgedDataConfig, to_text
from rollout_workers.rows import Row
from services.contracts.errors import UserError
from services.contracts.reward_example import ExampleForm


class RewardDataConfig(JudgedDataConfig):
    """Where judged completions come from and how a row becomes an example; learner.objective says which form it has."""

    margin_field: str | None = None
    """Pairs: column with the margin by which the better one is to be ahead."""
    completions_field: str = "completions"
    """Lists: column with the completions, best first."""
    steps_field: str = "steps"
    """Steps: column with a list of {start, end, label} in code points of the completion, or of {text, label}."""
    step_separator: str = Field(default="\n", min_length=1)
    """Steps: what ends a step where the model is served, and so each {start, end, label} step but a completion's last;
    goes between {text, label} steps that do not end with it."""
    max_tokens: int | None = Field(default=None, ge=2)
    """Longest text, in tokens; the model's limit where it is not given. Also the longest that is served."""
    long_texts: Literal["truncate", "drop", "error"] = "truncate"
    """What to do with a longer one: leave out its beginning, leave the row out, or refuse the data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedRow:
    """One row.

    Attributes:
        answers: best first where they are ranked.
        targets: label of each completion or step; for a pair its margin and 0, for a list zeros.
        step_ends: for each labelled step where it ends, in code points of the completion.
    """

    answers: tuple[Answer, ...]
    targets: tuple[float, ...]
    step_ends: tuple[int, ...] = ()


def read_judged_row(row: Row, data: RewardDataConfig, *, form: ExampleForm, any_label: bool, where: str) -> JudgedRow:
    """Read one row of the given form.

    Args:
        any_label: labels may be any number, instead of 0 to 1.
        where: file and row, for errors.

    Raises:
        UserError: naming `where` and the column at fault.
    """
    return _READERS[form](_RowReader(row, data, where, any_label))


@dataclass(frozen=True, slots=True)
class _RowReader(AnswerReader):
    """The columns of one row, and its labels."""

    data: RewardDataConfig
    any_label: bool

    def label(self, value: object, place: str) -> float:
        number = _number(value, place)
        if not self.any_label and not 0 <= number <= 1:
            raise UserError(f"{place}: the label is {number}, and learner.objective takes labels from 0 to 1")
        return number


def _read_pair(reader: _RowReader) -> JudgedRow:
    data = reader.data
    answers = reader.answer(data.chosen_field), reader.answer(data.rejected_field)
    margin = 0.0
    if data.margin_field is not None:
        margin = _number(reader.column(data.margin_field), f"{reader.where}, column {data.margin_field!r}")
    return JudgedRow(answers=answers, targets=(margin, 0.0))


def _read_list(reader: _RowReader) -> JudgedRow:
    place = f"{reader.where}, column {reader.data.completions_field!r}"
    values = reader.column(reader.data.completions_field)
    if not isinstance(values, list) or len(values) < 2:
        raise UserError(f"{place}: expected a list of at least two completions, best first, not {values!r:.80}")
    answers = tuple(reader.to_answer(value, f"{place}, number {number}") for number, value in enumerate(values))
    return JudgedRow(answers=answers, targets=(0.0,) * len(answers))


def _read_outcome(reader: _RowReader) -> JudgedRow:
    field = reader.data.label_field
    label = reader.label(reader.column(field), f"{reader.where}, column {field!r}")
    return JudgedRow(answers=(reader.answer(reader.data.completion_field),), targets=(label,))


def _read_steps(reader: _RowReader) -> JudgedRow:
    data, place = reader.data, f"{reader.where}, column {reader.data.steps_field!r}"
    steps = reader.column(data.steps_field)
    if not isinstance(steps, list) or not steps or not all(isinstance(step, Mapping) for step in steps):
        raise UserError(f"{place}: expected a list of objects, one for each step, not {steps!r:.80}")
    places = [f"{place}, step {number}" for number in range(len(steps))]
    labels = tuple(reader.label(step.get("label"), at) for step, at in zip(steps, places, strict=True))
    if all("text" in step for step in steps):
        texts = [to_text(step["text"], at) for step, at in zip(steps, places, strict=True)]
        completion, ends = _join(texts, data.step_separator)
        if reader.row.get(data.completion_field) not in (None, completion):
            raise UserError(f"{place}: the steps' texts do not make up the column {data.completion_field!r}")
        return JudgedRow(answers=(reader.to_answer(completion, place),), targets=labels, step_ends=ends)
    answer = reader.answer(data.completion_field)
    ends = _span_ends(steps, places, length=len(answer.completion))
    _refuse_other_ends(ends, places, completion=answer.completion, separator=data.step_separator)
    return JudgedRow(answers=(answer,), targets=labels, step_ends=ends)


def _join(texts: Sequence[str], separator: str) -> tuple[str, tuple[int, ...]]:
    """The completion that the steps make up, and where each ends."""
    completion, ends = "", []
    for number, text in enumerate(texts):
        is_last = number == len(texts) - 1
        completion += text if is_last or text.endswith(separator) else text + separator
        ends.append(len(completion))
    return completion, tuple(ends)


def _span_ends(steps: Sequence[Mapping[str, Any]], places: Sequence[str], *, length: int) -> tuple[int, ...]:
    before = 0
    for step, place in zip(steps, places, strict=True):
        start, end = step.get("start"), step.get("end")
        if not (isinstance(start, int) and isinstance(end, int) and before <= start < end <= length):
            raise UserError(
                f"{place}: start {start!r} and end {end!r} must be whole numbers with {before} <= start < end <= "
                f"{length}, the code points of the completion; or give each step its text"
            )
        before = end
    return tuple(step["end"] for step in steps)


def _refuse_other_ends(ends: Sequence[int], places: Sequence[str], *, completion: str, separator: str) -> None:
    """A served model is asked at the ends of steps as the separator makes them, so it must be taught there."""
    for end, place in zip(ends, places, strict=True):
        before, after = completion[:end], completion[end:]
        if after and (not before.endswith(separator) or after.startswith(separator)):
            raise UserError(
                f"{place}: it ends at {end}, where data.step_separator {separator!r} ends no step ({before[-20:]!r}, "
                f"then {after[:20]!r}), so that the served model would be asked elsewhere; set data.step_separator to "
                "what the steps were made with (labels.separator of trireme label-steps)"
            )


def _number(value: object, place: str) -> float:
    if not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise UserError(f"{place}: expected a finite number, found {value!r:.80}")
    return float(value)


_READERS: Mapping[ExampleForm, Callable[[_RowReader], JudgedRow]] = {
    "pairs": _read_pair,
    "lists": _read_list,
    "outcomes": _read_outcome,
    "steps": _read_steps,
}
