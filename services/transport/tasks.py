"""Several things to be waited for at once.

It must not know what they are. Invariant: when `all_or_cancel` has ended, so has everything that it waited for.
"""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

Result = TypeVar("Result")


async def all_or_cancel(coroutines: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Wait for all, and return what each gave; when one raises, cancel the others and raise its error."""
    waiting = list(coroutines)
    if len(waiting) == 1:  # A task for it would cost a tenth of a call to a reward server.
        return [await waiting[0]]
    tasks = [asyncio.ensure_future(coroutine) for coroutine in waiting]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
