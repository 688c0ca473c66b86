"""From a data file or hub name to demonstrations: prompts with responses, chosen turns of conversations, or texts.

It must not know how they are learnt. Invariant: every row becomes one demonstration, whole, or the data is refused with
file, row and column of the first fault.
"""

from array import array
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rollout_workers.conversations import encode_conversation, to_turns
from rollout_workers.prompts import DataConfig, load_prompts, text_column
from rollout_workers.rows import Row, column, read_rows
from services.contracts.errors import UserError
from services.contracts.records import Demonstration


def load_demonstrations(
    data: DataConfig, tokenizer: Any, *, max_length: int
) -> tuple[Demonstration, ...]:  # Any: transformers
    """Read what supervised training learns; a response and a text end with the end-of-sequence token.

    Args:
        max_length: most tokens of a demonstration.

    Raises:
        UserError: naming file, row and column of the first fault.
    """
    rows = read_rows(data.prompts, subset=data.subset, split=data.split)[: data.limit]
    if data.messages_field is not None:
        demonstrations = _conversations(data, rows, tokenizer)
    elif data.response_field is not None:
        demonstrations = _responses(data, rows, tokenizer, max_length)
    elif data.text_field is not None:
        demonstrations = _texts(data, rows, tokenizer)
    else:
        raise UserError(
            "supervised training needs data.response_field, the column with the response to learn, "
            "data.messages_field, the one with whole conversations, or data.text_field, the one with whole texts"
        )
    for number, demonstration in enumerate(demonstrations):
        if len(demonstration.token_ids) > max_length:
            raise UserError(
                f"{data.prompts}, row {number}: it has {len(demonstration.token_ids)} tokens and the limit is "
                f"{max_length}; raise model.max_length or leave the row out"
            )
    return tuple(demonstrations)


def stretches(demonstration: Demonstration) -> list[tuple[bool, list[int]]]:
    """The demonstration's tokens in order, cut where learnt ones (True) meet others."""
    tokens = zip(demonstration.loss_mask, demonstration.token_ids, strict=True)
    return [(bool(learnt), [token for _, token in run]) for learnt, run in groupby(tokens, key=lambda pair: pair[0])]


def _texts(data: DataConfig, rows: Sequence[Row], tokenizer: Any) -> list[Demonstration]:  # Any: ditto
    """Every token is learnt but the first, which nothing predicts."""
    assert data.text_field is not None
    demonstrations = []
    for number, row in enumerate(rows):
        text_ids = tokenizer.encode(text_column(data, row, data.text_field, number))
        if not text_ids:
            raise UserError(f"{data.prompts}, row {number}, column {data.text_field!r}: the text is empty")
        token_ids = array("i", [*text_ids, tokenizer.eos_token_id])
        demonstrations.append(Demonstration(token_ids=token_ids, loss_mask=array("b", [0] + [1] * len(text_ids))))
    return demonstrations


def _conversations(data: DataConfig, rows: Sequence[Row], tokenizer: Any) -> list[Demonstration]:  # Any: ditto
    assert data.messages_field is not None
    demonstrations = []
    for number, row in enumerate(rows):
        where = f"{data.prompts}, row {number}"
        value = column(row, data.messages_field, where)
        turns = to_turns(value, data, system=data.system, where=f"{where}, column {data.messages_field!r}")
        demonstrations.append(encode_conversation(tokenizer, turns, where=where))
    return demonstrations


def _responses(
    data: DataConfig, rows: Sequence[Row], tokenizer: Any, max_length: int
) -> list[Demonstration]:  # Any: ditto
    assert data.response_field is not None
    prompts = load_prompts(data, tokenizer, max_prompt_tokens=max_length)
    if prompts.num_dropped or prompts.num_truncated:
        raise UserError(f"{data.prompts}: supervised training keeps every row whole; raise model.max_length")
    demonstrations = []
    for prompt in prompts.prompts:
        response = text_column(data, rows[prompt.row], data.response_field, prompt.row)
        response_ids = [*tokenizer.encode(response, add_special_tokens=False), tokenizer.eos_token_id]
        loss_mask = array("b", [0] * len(prompt.token_ids) + [1] * len(response_ids))
        token_ids = prompt.token_ids + array("i", response_ids)
        demonstrations.append(Demonstration(token_ids=token_ids, loss_mask=loss_mask))
    return demonstrations
