"""The shape of OpenAI's chat protocol: what a response holds, if it is what it should be.

It must not know HTTP. Invariant: whatever bytes come, there is a whole reply or a ValueError; counts of tokens are
never negative, whatever the endpoint says.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CHARACTERS_PER_TOKEN = 3
"""A low guess, so that limits on tokens err on the safe side."""
MAX_TOKENS = 1 << 31


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What the model wrote, and what it cost; `is_cut` when it ran into the longest reply."""

    text: str
    input_tokens: int
    output_tokens: int
    is_cut: bool = False


def to_reply(content: bytes, body: Mapping[str, Any]) -> Reply:  # Any: JSON
    """The reply in a chat completion.

    Args:
        content: the response.
        body: the request that it answers.

    Raises:
        ValueError: there is no reply in it.
    """
    try:
        completion = json.loads(content)
        choice = completion["choices"][0]
        text = choice["message"]["content"] or ""
        is_cut = choice.get("finish_reason") == "length"
        usage = completion.get("usage")
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("no chat completion") from error
    if not isinstance(text, str):
        raise ValueError("the content is no text")
    return Reply(
        text=text.encode(errors="replace").decode(),  # Half a character can be written nowhere.
        input_tokens=_counted(usage, "prompt_tokens", guessed_input_tokens(body)),
        output_tokens=_counted(usage, "completion_tokens", len(text) // CHARACTERS_PER_TOKEN),
        is_cut=is_cut,
    )


def model_names(content: bytes) -> Sequence[str]:
    """The names in a list of models; none where it is no such list, which not every endpoint keeps."""
    try:
        return [str(model["id"]) for model in json.loads(content)["data"]]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []


def guessed_input_tokens(body: Mapping[str, Any]) -> int:  # Any: JSON
    """Tokens of a request's messages, guessed from their length."""
    return sum(len(message["content"]) for message in body["messages"]) // CHARACTERS_PER_TOKEN


def _counted(usage: object, name: str, guess: int) -> int:
    """What the endpoint says it counted; the guess where it says nothing that can be true."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count < MAX_TOKENS else guess
