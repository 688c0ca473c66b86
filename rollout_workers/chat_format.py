"""From a data column to the turns of a chat: a list of turns, one turn's text, or a transcript.

It must not know tokenizers, nor where rows come from.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from services.contracts.errors import UserError
from services.contracts.records import Message

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES: Mapping[str, Literal["user", "assistant"]] = {"Human": "user", "Assistant": "assistant"}


def to_messages(value: object, *, system: str | None, where: str) -> tuple[Message, ...]:
    """A prompt column as a chat: a string is one user turn; a list holds {role, content} turns.

    Raises:
        UserError: naming `where` the value stands, when it is neither, or not Unicode.
    """
    if isinstance(value, str):
        turns: tuple[Message, ...] = (Message(role="user", content=value),)
    elif isinstance(value, Sequence) and value and all(_is_turn(turn) for turn in value):
        turns = tuple(Message(role=turn["role"], content=turn["content"]) for turn in value)
    else:
        raise UserError(f"{where}: a prompt is a string or a list of {{role, content}} turns, not {value!r:.80}")
    return _begun(turns, system, where)


def parse_transcript(text: str, *, system: str | None, where: str) -> tuple[Message, ...]:
    """The turns of a chat written with "\\n\\nHuman:" or "\\n\\nAssistant:" before each.

    Raises:
        UserError: naming `where` the text stands, when it does not begin with one of them.
    """
    before, *parts = _TURN.split(text)
    if before.strip() or not parts:
        raise UserError(f'{where}: a transcript begins with "\\n\\nHuman:" or "\\n\\nAssistant:", not {text!r:.80}')
    turns = tuple(
        Message(role=_ROLES[who], content=content.strip()) for who, content in zip(parts[::2], parts[1::2], strict=True)
    )
    return _begun(turns, system, where)


def check_encodable(text: str, where: str) -> None:
    """Refuse text that is not Unicode. Raises `UserError`, naming `where` it stands."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: the text has a lone surrogate at character {error.start} and is not Unicode"
        ) from error


def _begun(turns: tuple[Message, ...], system: str | None, where: str) -> tuple[Message, ...]:
    """The chat, with the system's turn where there is one. Raises `UserError`: a turn is not Unicode."""
    chat = (Message(role="system", content=system), *turns) if system else turns
    for message in chat:
        check_encodable(message.content, where)
    return chat


def _is_turn(turn: object) -> bool:
    return (
        isinstance(turn, Mapping)
        and turn.get("role") in ("system", "user", "assistant", "tool")
        and isinstance(turn.get("content"), str)
    )
