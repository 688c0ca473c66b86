"""Finds fenced blocks (three or more backquotes, then lines, then as many backquotes) in a completion, in one pass.

It must not know what a block holds. Invariants: only a block that is closed counts, as one that was cut off is not what
the policy meant to give; a line with backquotes behind its first opens none, as in CommonMark.
"""

import re
from collections.abc import Collection

FENCE = re.compile(r"(`{3,}+)([^`]*)")


def last_fenced_block(text: str, *, languages: Collection[str]) -> str | None:
    """The last closed block that is marked with one of `languages` (its first word counts), or without one the last
    that is not marked; None where there is neither."""
    marked, unmarked, fence, language, lines = None, None, "", "", list[str]()
    for line in text.split("\n"):
        mark = FENCE.fullmatch(line.strip())
        if mark and not fence:
            fence, language, lines = mark[1], "".join(mark[2].lower().split()[:1]), []
        elif mark and not mark[2] and len(mark[1]) >= len(fence):
            if language in languages:
                marked = "\n".join(lines)
            elif not language:
                unmarked = "\n".join(lines)
            fence = ""
        else:
            lines.append(line)
    return unmarked if marked is None else marked
