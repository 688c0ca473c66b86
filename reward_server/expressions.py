"""A user's regular expression on a policy's text, matched by the library `regex`.

It must not know what an expression is for. Invariant: a search lets go of the interpreter's lock, and stops in time.
"""

from collections.abc import Callable

import regex

from services.contracts.records import Json


def compiled(pattern: Json, *, flags: int = 0) -> regex.Pattern[str]:
    """The expression, ready to match (the library remembers hundreds). Raises ValueError where it is none."""
    if not isinstance(pattern, str):
        raise ValueError(f"{pattern!r:.80} is no regular expression: it must be a text")
    try:
        return regex.compile(pattern, flags)
    except regex.error as error:
        raise ValueError(f"{pattern!r:.80} is no regular expression: {error}") from error


def matches(match: Callable[..., object], text: str, *, timeout_s: float) -> bool | None:
    """Whether an expression's `match` method finds it in the text; None where `timeout_s` of the process's computing
    time do not decide it."""
    try:
        return match(text, timeout=timeout_s, concurrent=True) is not None
    except TimeoutError:
        return None
