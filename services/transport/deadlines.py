"""Calls that may block for ever, run so that they cannot.

It must not know what is called. Invariant: `within` returns or raises by its deadline; a call that does not end is left
to a thread that keeps no process alive.
"""

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
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  # A thread's edge: whoever waits raises it.
            future.set_exception(error)

    threading.Thread(target=run, name=waited_for, daemon=True).start()
    try:
        return future.result(timeout_s)
    except TimeoutError as error:
        if future.done():
            raise
        raise DeadlineExceeded(waited_for=waited_for, waited_s=timeout_s, advice=advice) from error
