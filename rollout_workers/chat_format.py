"""From a data column to the turns of a chat.

It must not know tokenizers, nor where rows come from.
"""

from collections.abc import Mapping, Sequence

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


def _is_turn(turn: object) -> bool:
    return (
        isinstance(turn, Mapping)
        and turn.get("role") in ("system", "user", "assistant", "tool")
        and isinstance(turn.get("content"), str)
    )
