"""From rows of judged completions to what a reward model learns from, and which of it is kept for validation.

It must not know losses or models. Invariants: an example depends on its row and the tokenizer alone; which side of the
split a row is on depends on the seed and its prompt, so that no prompt is on both.
"""

from array import array
from dataclasses import dataclass, field
from typing import Any

from rollout_workers.reward_rows import JudgedRow, RewardDataConfig, read_judged_row
from rollout_workers.rows import read_rows
from services.contracts.errors import UserError
from services.contracts.reward_example import ExampleForm, RewardExample
from services.contracts.reward_text import RewardText, encode_reward_text


@dataclass(kw_only=True, slots=True)
class RewardExamples:
    """The examples of a data set, those kept for validation apart, and what was cut or left out.

    Attributes:
        num_truncated: texts whose beginning was left out.
        num_too_long: rows left out for their length.
        num_empty: rows with nothing to learn: completions that read the same, or labelled steps that were cut.
    """

    training: list[RewardExample] = field(default_factory=list)
    validation: list[RewardExample] = field(default_factory=list)
    num_truncated: int = 0
    num_too_long: int = 0
    num_empty: int = 0


def load_reward_examples(
    data: RewardDataConfig,
    tokenizer: Any,  # Any: transformers is untyped
    *,
    form: ExampleForm,
    max_tokens: int,
    any_label: bool,
    seed: int,
) -> RewardExamples:
    """Read, tokenise and split a data set.

    Args:
        max_tokens: longest text.
        any_label: labels may be any number, instead of 0 to 1.
        seed: decides, with a row's prompt, on which side of the split it is.

    Raises:
        UserError: naming file, row and column of the first fault, or when nothing is left to learn.
    """
    found = RewardExamples()
    rows = read_rows(data.examples, subset=data.subset, split=data.split)[: data.limit]
    for number, row in enumerate(rows):
        where = f"{data.examples}, row {number}"
        judged = read_judged_row(row, data, form=form, any_label=any_label, where=where)
        texts = _encode(judged, data, tokenizer, max_tokens)
        if not _fits(texts, data, where=where, max_tokens=max_tokens):
            found.num_too_long += 1
        elif (example := _example(judged, texts, number)) is None:
            found.num_empty += 1
        else:
            found.num_truncated += sum(text.num_left_out > 0 for text in texts)
            is_kept = judged.answers[0].draw(seed) < data.validation_share
            (found.validation if is_kept else found.training).append(example)
    if not found.training or (data.validation_share and not found.validation):
        raise UserError(
            f"{data.examples}: of {len(rows)} rows {len(found.training)} are left to learn and "
            f"{len(found.validation)} for validation ({found.num_too_long} are too long, {found.num_empty} have "
            f"nothing to learn); change data.validation_share ({data.validation_share}), or give more rows"
        )
    return found


def _encode(judged: JudgedRow, data: RewardDataConfig, tokenizer: Any, max_tokens: int) -> list[RewardText]:
    # Any: transformers is untyped.
    return [
        encode_reward_text(
            tokenizer,
            prompt=answer.prompt,
            messages=answer.messages,
            completion=answer.completion,
            template=data.template,
            max_tokens=max_tokens,
            step_ends=judged.step_ends,
        )
        for answer in judged.answers
    ]


def _fits(texts: list[RewardText], data: RewardDataConfig, *, where: str, max_tokens: int) -> bool:
    """Whether a row stays in. Raises `UserError` where none may be too long."""
    longest = max(len(text.token_ids) + text.num_left_out for text in texts)
    if longest <= max_tokens or data.long_texts == "truncate":
        return True
    if data.long_texts == "error":
        raise UserError(
            f"{where}: the text has {longest} tokens and {max_tokens} fit; raise data.max_tokens or model.max_length, "
            "or set data.long_texts to truncate or drop"
        )
    return False


def _example(judged: JudgedRow, texts: list[RewardText], number: int) -> RewardExample | None:
    """None when there is nothing to learn."""
    sequences = tuple(text.token_ids for text in texts)
    if not all(sequences) or len({sequence.tobytes() for sequence in sequences}) < len(sequences):
        return None
    targets, positions = judged.targets, array("i")
    if judged.step_ends:
        steps = [(at, target) for at, target in zip(texts[0].step_positions, targets, strict=True) if at is not None]
        if not steps:
            return None
        positions, targets = array("i", (at for at, _ in steps)), tuple(target for _, target in steps)
    return RewardExample(
        row=number,
        sequences=sequences,
        positions=positions,
        targets=targets,
        completion_lengths=tuple(len(answer.completion) for answer in judged.answers),
    )
