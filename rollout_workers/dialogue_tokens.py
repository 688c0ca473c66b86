"""Between text and tokens in a dialogue: what the policy said in words, and an environment's answer in tokens.

It knows a tokenizer only by what every fast one of transformers can do. Invariant: tokens that were sampled are never
made anew from their text; an answer's tokens stand alone, whatever they follow.
"""

from collections.abc import Sequence
from typing import Any

from services.contracts.errors import UserError
from services.contracts.records import Message, Role
from services.contracts.reward_text import chat_text

_MARK = "\ue000"
"""Stands for what the policy said, in a chat that is rendered only for what follows it."""


class DialogueTokens:
    """Reads and writes one model's dialogues.

    Args:
        tokenizer: a fast tokenizer that nobody else uses meanwhile.
        role: whose turn an answer is, in a chat.
    """

    def __init__(self, tokenizer: Any, role: Role) -> None:  # Any: transformers is untyped
        self._tokenizer = tokenizer
        self._role = role

    def text(self, token_ids: Sequence[int]) -> str:
        """What they say, without special tokens."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def answer(self, text: str, *, in_chat: bool, after: int) -> list[int]:
        """The tokens between the policy's last one and its next.

        Args:
            in_chat: as the chat template writes a turn, up to where the policy's own begins; else the text as it is.
            after: the policy's last token; where that ends its turn as the template does, nothing repeats it.

        Raises:
            UserError: the tokenizer has no chat template, or one that shows no turn before the last.
        """
        if in_chat:
            text = self._turn(text).removeprefix(self._tokenizer.decode([after], skip_special_tokens=False))
        token_ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return token_ids

    def _turn(self, text: str) -> str:
        chat = (
            Message(role="user", content="."),
            Message(role="assistant", content=_MARK),
            Message(role=self._role, content=text),
        )
        _, mark, after = chat_text(self._tokenizer, chat).partition(_MARK)
        if not mark:
            raise UserError(
                "the tokenizer's chat template leaves out what the assistant said before; a dialogue needs one that "
                "keeps it, or data.template: plain"
            )
        return after
