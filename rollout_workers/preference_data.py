"""From rows of preferences to what a policy learns from, and which of it is kept for validation.

It must not know losses or models. Invariants: a pair's completions follow the same prompt and differ; every completion
ends with the end-of-sequence token and fits the model whole; as with reward models, a prompt is on one side of the
split.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from rollout_workers.judged_answers import Answer, AnswerReader, JudgedDataConfig
from rollout_workers.rows import read_rows
from services.contracts.errors import UserError
from services.contracts.preference_example import PreferenceExample, PreferenceForm
from services.contracts.records import Demonstration
from services.contracts.reward_text import chat_text

_FARTHEST_UNRELATED = 256
"""Rows that are looked at for one with another prompt, before a completion of the same prompt will do."""


class PreferenceDataConfig(JudgedDataConfig):
    """Where preferences come from and how a row becomes an example; learner.algorithm says which form it has."""

    unfit_rows: Literal["error", "drop"] = "error"
    """What to do with a row that is too long, whose completions are the same, or follow different prompts: refuse the
    data, or leave the row out and count it."""


@dataclass(kw_only=True, slots=True)
class PreferenceExamples:
    """The examples of a data set, those kept for validation apart, and how many rows were left out for which fault."""

    training: list[PreferenceExample] = field(default_factory=list)
    validation: list[PreferenceExample] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """One row as tokens: the prompt's, and each completion's with the end of sequence."""

    number: int
    prompt: array[int]
    completions: tuple[array[int], ...]
    desirable: bool | None


def load_preferences(
    data: PreferenceDataConfig,
    tokenizer: Any,  # Any: transformers is untyped
    *,
    form: PreferenceForm,
    max_tokens: int,
    seed: int,
) -> PreferenceExamples:
    """Read, tokenise and split a data set.

    Args:
        max_tokens: longest prompt with its completion.
        seed: decides, with a row's prompt, on which side of the split it is.

    Raises:
        UserError: naming file, row and column of the first fault, or when nothing is left to learn.
    """
    found = PreferenceExamples()
    training: list[_Row] = []
    validation: list[_Row] = []
    rows = read_rows(data.examples, subset=data.subset, split=data.split)[: data.limit]
    for number, row in enumerate(rows):
        reader = AnswerReader(row, data, f"{data.examples}, row {number}")
        answers, desirable = _read(reader, form)
        encoded = _encode(answers, data, tokenizer, number=number, desirable=desirable, where=reader.where)
        fault, told = _fault(answers, encoded, max_tokens)
        if not fault:
            (validation if answers[0].draw(seed) < data.validation_share else training).append(encoded)
        elif data.unfit_rows == "error":
            raise UserError(f"{reader.where}: {told}; or set data.unfit_rows to drop, which leaves such rows out")
        else:
            found.left_out[fault] += 1
    _check(training, validation, data, num_rows=len(rows), left_out=found.left_out)
    found.training = _examples(training, max_tokens)
    found.validation = _examples(validation, max_tokens)
    return found


def _read(reader: AnswerReader, form: PreferenceForm) -> tuple[tuple[Answer, ...], bool | None]:
    data = reader.data
    if form == "pairs":
        return (reader.answer(data.chosen_field), reader.answer(data.rejected_field)), None
    label = reader.column(data.label_field)
    if not isinstance(label, bool):
        raise UserError(
            f"{reader.where}, column {data.label_field!r}: a completion is desirable (true) or not (false), and the "
            f"label is {label!r:.80}"
        )
    return (reader.answer(data.completion_field),), label


def _encode(
    answers: Sequence[Answer],
    data: PreferenceDataConfig,
    tokenizer: Any,  # Any: transformers is untyped
    *,
    number: int,
    desirable: bool | None,
    where: str,
) -> _Row:
    first = answers[0]
    is_chat = data.template == "chat"
    text = chat_text(tokenizer, first.messages) if is_chat else first.prompt
    # A chat template writes its own special tokens.
    prompt = tokenizer.encode(text, add_special_tokens=not is_chat)
    if not prompt:
        raise UserError(f"{where}: the prompt is empty, and a completion's first token is predicted from what precedes")
    completions = (tokenizer.encode(answer.completion, add_special_tokens=False) for answer in answers)
    return _Row(
        number=number,
        prompt=array("i", prompt),
        completions=tuple(array("i", [*ids, tokenizer.eos_token_id]) for ids in completions),
        desirable=desirable,
    )


def _fault(answers: Sequence[Answer], row: _Row, max_tokens: int) -> tuple[str, str]:
    """What is wrong with a row, as a name and in words with what to do; empty when nothing is."""
    first, last = answers[0], answers[-1]
    if (first.prompt, first.messages) != (last.prompt, last.messages):
        return "other_prompt", "chosen and rejected follow different prompts; give both the same"
    if len(row.completions) > 1 and row.completions[0] == row.completions[1]:
        return "same", "chosen and rejected are the same, so neither is preferred; remove the row"
    longest = len(row.prompt) + max(map(len, row.completions))
    if longest > max_tokens:
        return "too_long", f"prompt and completion have {longest} tokens and {max_tokens} fit; raise model.max_length"
    return "", ""


def _check(
    training: Sequence[_Row],
    validation: Sequence[_Row],
    data: PreferenceDataConfig,
    *,
    num_rows: int,
    left_out: Counter[str],
) -> None:
    """Raise `UserError` unless there is something to learn, and something to validate on where it is asked for."""
    if not training or (data.validation_share and not validation):
        reasons = ", ".join(f"{count} {fault}" for fault, count in left_out.items()) or "none"
        raise UserError(
            f"{data.examples}: of {num_rows} rows {len(training)} are left to learn and {len(validation)} for "
            f"validation (left out: {reasons}); change data.validation_share ({data.validation_share}), or give more "
            "rows"
        )
    kinds = {row.desirable for row in training}
    if len(kinds) == 1 and None not in kinds:
        only = "desirable" if True in kinds else "undesirable"
        raise UserError(
            f"{data.examples}: all {len(training)} rows to learn are {only}; kto learns from both kinds, and from "
            "desirable ones alone `trireme sft` does"
        )


def _examples(rows: Sequence[_Row], max_tokens: int) -> list[PreferenceExample]:
    return [
        PreferenceExample(
            row=row.number,
            completions=tuple(_behind(row.prompt, completion) for completion in row.completions),
            desirable=row.desirable,
            unrelated=None if row.desirable is None else _behind(row.prompt, _unrelated(rows, place, max_tokens)),
        )
        for place, row in enumerate(rows)
    ]


def _unrelated(rows: Sequence[_Row], place: int, max_tokens: int) -> array[int]:
    """The completion of the next row with another prompt that fits; of the next that fits where none is near."""
    row = rows[place]
    others = (rows[(place + distance) % len(rows)] for distance in range(1, len(rows)))
    near = [
        other
        for other in islice(others, _FARTHEST_UNRELATED)
        if len(row.prompt) + len(other.completions[0]) <= max_tokens
    ]
    of_other_prompt = (other for other in near if other.prompt != row.prompt)
    return next(of_other_prompt, near[0] if near else row).completions[0]


def _behind(prompt: array[int], completion: array[int]) -> Demonstration:
    return Demonstration(token_ids=prompt + completion, loss_mask=array("b", [0] * len(prompt) + [1] * len(completion)))
