"""From a data file or hub name to tokenised prompts, with every fault named by file, row and column.

It must not know what happens to a prompt afterwards. Invariants: a prompt's id, text and tokens depend on its row and
epoch alone, and `RowOrder` gives the same order for the same seed and position, so that a resumed run continues
where it stopped.
"""

import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from rollout_workers.chat_format import check_encodable, to_messages
from rollout_workers.conversations import ConversationConfig
from rollout_workers.prompt_format import check_format, format_prompt
from rollout_workers.rows import Row, column, read_rows
from services.contracts.errors import UserError
from services.contracts.records import Json, Message, Prompt
from services.contracts.reward_text import chat_text


class DataConfig(ConversationConfig):
    """Where prompts come from and how a row becomes one."""

    prompts: str
    """A .jsonl, .json or .parquet file, or a data set's name on the Hugging Face hub."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    split: str = "train"
    """Split of a hub data set."""
    prompt_field: str = "prompt"
    """Column with the prompt: a string, or a list of {role, content} turns."""
    prompt_format: Annotated[str, AfterValidator(check_format)] | None = None
    """Text made of the row's columns, such as "Question: {question}\\nAnswer:"; goes before prompt_field."""
    reference_field: str | None = None
    """Column that rewards read as reference["answer"]; a column of objects becomes the reference itself."""
    reference_columns: tuple[str, ...] = ()
    """Further columns that rewards read in the reference, under their own names, such as the one that routes go by."""
    response_field: str | None = None
    """Column with the response that supervised training learns."""
    text_field: str | None = None
    """Column with a text of which supervised training learns every token, as pretraining does; in place of prompt_field
    and response_field."""
    template: Literal["chat", "plain"] = "chat"
    """chat: the tokenizer's chat template; plain: the prompt's text as it is."""
    system: str | None = None
    """System turn put before every chat prompt."""
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    """Longest prompt, in tokens; by default what the model's length leaves beside the completion."""
    long_prompts: Literal["error", "truncate", "drop"] = "error"
    """What to do with a longer one: refuse the data, keep its last max_prompt_tokens tokens, or leave it out."""
    shuffle: bool = True
    """Draw each epoch in a new order that depends on run.seed."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first so many rows."""

    @property
    def is_learnt(self) -> bool:
        """Whether some column is named that supervised training learns."""
        return any(field is not None for field in (self.messages_field, self.response_field, self.text_field))

    @model_validator(mode="after")
    def _conversations_stand_alone(self) -> Self:
        if self.messages_field is not None and self.response_field is not None:
            raise ValueError(
                f"messages_field {self.messages_field!r} holds whole conversations, and response_field "
                f"{self.response_field!r} the answers to prompt_field; set one of them"
            )
        if self.text_field is not None and (self.messages_field, self.response_field) != (None, None):
            raise ValueError(
                f"text_field {self.text_field!r} holds whole texts, beside which there is no messages_field and no "
                "response_field; set one of them"
            )
        if self.messages_field is not None and self.template == "plain":
            raise ValueError("messages_field is written by the tokenizer's chat template; set template: chat")
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSet:
    """All prompts of a data set, and how many rows were truncated or dropped for their length."""

    prompts: tuple[Prompt, ...]
    num_truncated: int = 0
    num_dropped: int = 0


class RowOrder:
    """Rows of a data set without end, epoch after epoch; `position` is all the state there is.

    Args:
        num_rows: size of the data set; at least 1.
        seed: orders the epochs, unless `shuffle` is off.
        position: rows already drawn, when a run resumes.
    """

    def __init__(self, num_rows: int, *, seed: int | str, shuffle: bool, position: int = 0) -> None:
        assert num_rows > 0
        self._num_rows = num_rows
        self._seed = seed
        self._shuffle = shuffle
        self.position = position
        self._orders: dict[int, list[int]] = {}

    def draw(self) -> tuple[int, int]:
        """The next epoch and row."""
        self.position += 1
        return self.at(self.position - 1)

    def at(self, position: int) -> tuple[int, int]:
        """Epoch and row at a position, drawn or not."""
        epoch, index = divmod(position, self._num_rows)
        if epoch not in self._orders:
            order = list(range(self._num_rows))
            if self._shuffle:
                random.Random(f"{self._seed}/{epoch}").shuffle(order)
            # Only neighbouring epochs are under way at the same time.
            self._orders = {kept: rows for kept, rows in self._orders.items() if abs(kept - epoch) <= 1} | {
                epoch: order
            }
        return epoch, self._orders[epoch][index]


class PromptStream:
    """Prompts without end, in a row order; a prompt of a later epoch has an id of its own."""

    def __init__(self, prompts: Sequence[Prompt], order: RowOrder) -> None:
        self._prompts = prompts
        self._order = order

    @property
    def position(self) -> int:
        """Prompts drawn so far."""
        return self._order.position

    def draw(self) -> Prompt:
        return self._prompt(*self._order.draw())

    def at(self, position: int) -> Prompt:
        """The prompt at a position, drawn or not."""
        return self._prompt(*self._order.at(position))

    def _prompt(self, epoch: int, index: int) -> Prompt:
        prompt = self._prompts[index]
        return replace(prompt, id=f"{epoch}-{prompt.row}", epoch=epoch)


def load_prompts(data: DataConfig, tokenizer: Any, *, max_prompt_tokens: int) -> PromptSet:  # Any: transformers
    """Read, template and tokenise a data set.

    Args:
        tokenizer: a transformers tokenizer.
        max_prompt_tokens: what model and completion length leave; `data.max_prompt_tokens` may be stricter.

    Raises:
        UserError: naming file, row and column of the first fault, or when nothing is left.
    """
    limit = min(max_prompt_tokens, data.max_prompt_tokens or max_prompt_tokens)
    rows = read_rows(data.prompts, subset=data.subset, split=data.split)[: data.limit]
    kept: list[Prompt] = []
    num_long = 0
    for number, row in enumerate(rows):
        prompt = _to_prompt(data, tokenizer, row, number)
        if len(prompt.token_ids) > limit:
            num_long += 1
            if data.long_prompts == "error":
                raise UserError(
                    f"{data.prompts}, row {number}: the prompt has {len(prompt.token_ids)} tokens and {limit} fit; "
                    "raise model.max_length, lower rollout.max_completion_tokens, or set data.long_prompts to "
                    "truncate or drop"
                )
            if data.long_prompts == "drop":
                continue
            prompt = replace(prompt, token_ids=prompt.token_ids[-limit:])
        kept.append(prompt)
    if not kept:
        raise UserError(
            f"{data.prompts}: no prompt is left of {len(rows)} rows ({num_long} longer than {limit} tokens)"
        )
    dropped = len(rows) - len(kept)
    return PromptSet(prompts=tuple(kept), num_truncated=num_long - dropped, num_dropped=dropped)


def text_column(data: DataConfig, row: Row, field: str, number: int) -> str:
    """A column's text. Raises `UserError`, naming file, row and column, where it is none."""
    where = f"{data.prompts}, row {number}"
    value = column(row, field, where)
    if not isinstance(value, str):
        raise UserError(f"{where}, column {field!r}: expected a string, found {type(value).__name__}")
    check_encodable(value, f"{where}, column {field!r}")
    return value


def _to_prompt(data: DataConfig, tokenizer: Any, row: Row, number: int) -> Prompt:  # Any: transformers
    where = f"{data.prompts}, row {number}"
    if data.prompt_format:
        value, place = format_prompt(data.prompt_format, row, where), where
    else:
        value, place = column(row, data.prompt_field, where), f"{where}, column {data.prompt_field!r}"
    messages: tuple[Message, ...] = ()
    if data.template == "chat":
        messages = to_messages(value, system=data.system, where=place)
        text = chat_text(tokenizer, messages)
    elif isinstance(value, str):
        text = value
        check_encodable(text, place)
    else:
        raise UserError(
            f"{place}: a plain prompt is a string, not {type(value).__name__}; a list of turns needs "
            "data.template: chat"
        )
    # A chat template writes its own special tokens.
    token_ids = tokenizer.encode(text, add_special_tokens=data.template == "plain")
    if not token_ids:
        raise UserError(f"{where}: the prompt is empty")
    return Prompt(
        id=f"0-{number}",
        messages=messages,
        text=text,
        token_ids=array("i", token_ids),
        reference=_reference(data, row, where),
        row=number,
    )


def _reference(data: DataConfig, row: Row, where: str) -> Mapping[str, Json]:
    columns = {name: column(row, name, where) for name in data.reference_columns}
    if data.reference_field is None:
        return columns
    value = column(row, data.reference_field, where)
    return {**(value if isinstance(value, dict) else {"answer": value}), **columns}
