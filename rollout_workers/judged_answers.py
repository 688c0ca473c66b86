"""The completions in a row of judged ones, and what they answer: what reward models and preferences have in common.

It must not know judgements, tokenizers or models. Invariant: what is wrong with a column is told by file, row and
column.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from rollout_workers.chat_format import check_encodable, parse_transcript, to_messages
from rollout_workers.rows import Row, column
from services.contracts.errors import UserError
from services.contracts.records import Message
from services.contracts.reward_text import Template
from services.contracts.settings import Section


class JudgedDataConfig(Section):
    """Where judged completions come from, and in which columns."""

    examples: str
    """A .jsonl, .json or .parquet file, or a data set's name on the Hugging Face hub."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    split: str = "train"
    """Split of a hub data set."""
    prompt_field: str | None = "prompt"
    """Column with the prompt: a string, or a list of {role, content} turns. None: each completion is a whole
    transcript, as {role, content} turns or as text with "\\n\\nHuman:" and "\\n\\nAssistant:" before each turn."""
    chosen_field: str = "chosen"
    """Pairs: column with the better completion."""
    rejected_field: str = "rejected"
    """Pairs: column with the worse completion."""
    completion_field: str = "completion"
    """Rows of one completion: its column; labelled steps that have a text need none."""
    label_field: str = "label"
    """Rows of one completion: column with its label: 0 to 1, or any number for a regression; true or false for kto."""
    template: Template = "plain"
    """plain: the text is prompt and completion as they are; chat: the tokenizer's chat template makes it."""
    system: str | None = None
    """System turn put before every chat prompt."""
    validation_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the prompts that is not learnt but tells which weights are best; 0 keeps the last weights."""
    shuffle: bool = True
    """Draw each epoch in a new order that depends on run.seed."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first so many rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A completion and what it answers: a text, or the messages of a chat."""

    prompt: str = ""
    messages: tuple[Message, ...] = ()
    completion: str

    def draw(self, seed: int) -> float:
        """A number in [0, 1) that is the same for all answers to a prompt: decides what is kept for validation."""
        key = f"{seed}/{self.prompt}/{[(message.role, message.content) for message in self.messages]}"
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) / 2**64


@dataclass(frozen=True, slots=True)
class AnswerReader:
    """The columns of one row.

    Attributes:
        where: file and row, for errors.
    """

    row: Row
    data: JudgedDataConfig
    where: str

    def column(self, field: str) -> Any:  # Any: the user's JSON
        """What a column holds. Raises `UserError` where there is nothing."""
        return column(self.row, field, self.where)

    def answer(self, field: str) -> Answer:
        """The completion in a column. Raises `UserError`."""
        return self.to_answer(self.column(field), f"{self.where}, column {field!r}")

    def to_answer(self, value: object, place: str) -> Answer:
        """A completion, or a transcript that ends with one. Raises `UserError` naming `place`."""
        if self.data.prompt_field is None:
            return self._transcript(value, place)
        prompt, prompt_place = self.column(self.data.prompt_field), f"{self.where}, column {self.data.prompt_field!r}"
        completion = _last_turn(value, place) if isinstance(value, list) else to_text(value, place)
        if self.data.template == "chat":
            messages = to_messages(prompt, system=self.data.system, where=prompt_place)
            return Answer(messages=messages, completion=completion)
        return Answer(prompt=to_text(prompt, prompt_place), completion=completion)

    def _transcript(self, value: object, place: str) -> Answer:
        if self.data.template == "plain":
            context, marker, reply = to_text(value, place).rpartition("\n\nAssistant:")
            return Answer(prompt=context + marker, completion=reply)
        turns = to_messages(value, system=self.data.system, where=place) if isinstance(value, list) else ()
        turns = turns or parse_transcript(to_text(value, place), system=self.data.system, where=place)
        if turns[-1].role != "assistant":
            raise UserError(f"{place}: the last turn is to be judged, and it is the {turns[-1].role}'s")
        return Answer(messages=turns[:-1], completion=turns[-1].content)


def to_text(value: object, place: str) -> str:
    """A string that can be encoded. Raises `UserError` naming `place`."""
    if not isinstance(value, str):
        hint = "; a list of turns needs data.template: chat" if isinstance(value, list) else ""
        raise UserError(f"{place}: expected a string, found {type(value).__name__}{hint}")
    check_encodable(value, place)
    return value


def _last_turn(turns: Sequence[object], place: str) -> str:
    """The completion where it is written as a chat of one turn."""
    messages = to_messages(turns, system=None, where=place)
    if len(messages) != 1 or messages[0].role != "assistant":
        raise UserError(f"{place}: expected the assistant's one turn, as the prompt has a column of its own")
    return messages[0].content
