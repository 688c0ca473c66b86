"""Text of unknown origin, made fit to be shown on a terminal or in a page.

It must not know where the text comes from or goes to. Invariant: what comes out cannot move a cursor, ring a bell, or
turn the direction of the text around it; every letter, space and emoji of any script stays.
"""

import unicodedata

_TURNS_DIRECTION = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_STAND_IN = "\ufffd"


def visible(text: str) -> str:
    """The text with a stand-in for each control character but newline and tab."""
    return "".join(_STAND_IN if _is_control(character) else character for character in text)


def shortened(text: str, *, longest: int, rest_is_in: str) -> str:
    """The text, or its beginning and a word on where the rest is."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]}… and {len(text) - longest:,} more characters, in {rest_is_in}"


def _is_control(character: str) -> bool:
    if character in "\n\t":
        return False
    return unicodedata.category(character) in ("Cc", "Cs") or character in _TURNS_DIRECTION
