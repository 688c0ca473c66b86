"""Calls that may block for ever, run so that they cannot.

It must not know what is called. Invariant: `within` and `soon` return or raise by their deadline; a call that does not
end is left to a thread that keeps no process alive.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from services.contracts.errors import DeadlineExceeded

Result = TypeVar("Result")


def within(timeout_s: float, work: Callable[[], Result], *, waited_for: str, advice: str) -> Result:
    """What `work` returns or raises.

    Raises:
        DeadlineExceeded: it did neither in time. It may still run: the caller ends it by taking away what it waits on.
    """
    future = _begin(work, waited_for)
    try:
        return future.result(timeout_s)
    except TimeoutError as error:
        if future.done():
            raise
        raise DeadlineExceeded(waited_for=waited_for, waited_s=timeout_s, advice=advice) from error


async def soon(timeout_s: float, work: Callable[[], Result], *, waited_for: str, advice: str) -> Result:
    """As `within`, and meanwhile the event loop goes on."""
    ended = asyncio.wrap_future(_begin(work, waited_for))
    try:
        async with asyncio.timeout(timeout_s):
            return await ended
    except TimeoutError as error:
        if not ended.cancelled():
            raise
        raise DeadlineExceeded(waited_for=waited_for, waited_s=timeout_s, advice=advice) from error


def _begin(work: Callable[[], Result], name: str) -> Future[Result]:
    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()  # From here on nobody can cancel it, so that it can always be set.

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  # A thread's edge: whoever waits raises it.
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
