"""From a data row to the text that the policy continues: chat template or plain text.

It knows tokenizers only by their `apply_chat_template`; it must not know where rows come from.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from services.contracts.errors import UserError
from services.contracts.records import Message


def to_messages(value: object, *, system: str | None, where: str) -> tuple[Message, ...]:
    """A prompt column as a chat: a string is one user turn; a list holds {role, content} turns.

    Raises:
        UserError: naming `where` the value stands, when it is neither.
    """
    if isinstance(value, str):
        turns: tuple[Message, ...] = (Message(role="user", content=value),)
    elif isinstance(value, Sequence) and value and all(_is_turn(turn) for turn in value):
        turns = tuple(Message(role=turn["role"], content=turn["content"]) for turn in value)
    else:
        raise UserError(f"{where}: a prompt is a string or a list of {{role, content}} turns, not {value!r:.80}")
    return (Message(role="system", content=system), *turns) if system else turns


def apply_chat_template(tokenizer: Any, messages: Sequence[Message]) -> str:  # Any: transformers is untyped
    """The chat as text, ending where the assistant's answer begins.

    Raises:
        UserError: when the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template; set data.template to plain, or name a "
            "tokenizer that has one in model.tokenizer"
        )
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def _is_turn(turn: object) -> bool:
    return (
        isinstance(turn, Mapping)
        and turn.get("role") in ("system", "user", "assistant", "tool")
        and isinstance(turn.get("content"), str)
    )
