"""From a prompt and its completion to the tokens that a reward model reads; the trainer and the server both come here.

It knows a tokenizer only by what every fast one of transformers can do, and no model at all. Invariants: the same
sample gives the same tokens in training and in serving; the text ends where the completion ends; of a text that is too
long the beginning is left out, special tokens aside, and what is far too long costs no more than what is read of it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from services.contracts.errors import UserError
from services.contracts.records import Message

Template = Literal["chat", "plain"]

LONGEST_TOKEN = 16
"""Characters of a token, on average over a text, above which the beginning of a text that is too long is not read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardText:
    """What a reward model reads of one completion.

    Attributes:
        token_ids: (T,) token ids.
        step_positions: for each step asked for, where its last token lies in `token_ids`; None where it was left out.
        num_left_out: tokens at the beginning that found no room; of a text that is far too long, at least so many.
    """

    token_ids: array[int]
    step_positions: tuple[int | None, ...] = ()
    num_left_out: int = 0


def encode_reward_text(
    tokenizer: Any,  # Any: transformers is untyped
    *,
    prompt: str,
    messages: Sequence[Message] = (),
    completion: str,
    template: Template,
    max_tokens: int,
    step_ends: Sequence[int] = (),
) -> RewardText:
    """The tokens of what precedes the completion and of the completion.

    Args:
        tokenizer: a fast tokenizer.
        prompt: the text that the policy continued; in a chat without messages the user's one turn.
        messages: the chat behind the prompt.
        template: chat: the tokenizer's chat template makes the text of the messages; plain: it is the prompt itself.
        max_tokens: most tokens of the whole, special ones included.
        step_ends: for each step of the completion where it ends, in code points of the completion.

    Raises:
        UserError: a chat for a tokenizer that has no chat template.
    """
    if template == "chat":
        prompt = chat_text(tokenizer, messages or (Message(role="user", content=prompt),))
    text = prompt + completion
    first = max(0, len(text) - max_tokens * LONGEST_TOKEN)
    encoding = tokenizer(
        text[first:],
        add_special_tokens=template == "plain",  # A chat template writes its own.
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,
    )
    kept = _last_tokens(encoding["special_tokens_mask"], max_tokens)
    starts = [begin if end > begin else None for begin, end in (encoding["offset_mapping"][i] for i in kept)]
    return RewardText(
        token_ids=array("i", (encoding["input_ids"][i] for i in kept)),
        step_positions=tuple(_last_token_before(len(prompt) + end - first, starts) for end in step_ends),
        num_left_out=len(encoding["input_ids"]) - len(kept) + (first > 0),
    )


def chat_text(tokenizer: Any, messages: Sequence[Message]) -> str:  # Any: transformers is untyped
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


def _last_tokens(is_special: Sequence[int], max_tokens: int) -> list[int]:
    """Which tokens stay: all special ones, and as many others from the end as there is room for."""
    too_many = max(0, len(is_special) - max_tokens)
    plain = [i for i, special in enumerate(is_special) if not special]
    left_out = set(plain[:too_many])
    return [i for i in range(len(is_special)) if i not in left_out]


def _last_token_before(end: int, starts: Sequence[int | None]) -> int | None:
    """The last token that begins before character `end`; None stands for one that has no characters."""
    return next((i for i in reversed(range(len(starts))) if (begin := starts[i]) is not None and begin < end), None)
