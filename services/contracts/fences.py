"""Finds fenced blocks (three backquotes, then lines, then three backquotes) in a completion, in one pass.

It must not know what a block holds. Invariant: only a block that is closed counts, as one that was cut off is not what
the policy meant to give.
"""

from collections.abc import Collection

FENCE = "```"


def last_fenced_block(text: str, *, languages: Collection[str]) -> str | None:
    """The last closed block that is marked with one of `languages`, or with none; None where there is no such block."""
    found, opened, lines = None, None, list[str]()
    for line in text.split("\n"):
        mark = line.strip()
        if opened is None and mark.startswith(FENCE):
            opened, lines = mark.removeprefix(FENCE).strip().lower(), []
        elif mark == FENCE:
            found = "\n".join(lines) if opened == "" or opened in languages else found
            opened = None
        else:
            lines.append(line)
    return found
