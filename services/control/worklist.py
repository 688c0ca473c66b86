"""Many items worked off side by side, with a word now and then of how far it is.

It must not know what is done with an item, nor what is done already. Invariants: each item is taken once, in order; the
first error ends the others.
"""

import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from services.transport.tasks import all_or_cancel

_TELL_EVERY_S = 5.0

Item = TypeVar("Item")


async def work_off(
    items: Iterable[Item], work: Callable[[Item], Awaitable[None]], *, at_once: int, tell: Callable[[], None]
) -> None:
    """Do `work` on every item, on `at_once` of them at a time; `tell` is called every few seconds."""
    waiting = iter(items)
    told_at = time.monotonic()

    async def take_turns() -> None:
        nonlocal told_at
        for item in waiting:
            await work(item)
            if time.monotonic() - told_at >= _TELL_EVERY_S:
                told_at = time.monotonic()
                tell()

    await all_or_cancel(take_turns() for _ in range(at_once))
