"""Ends a computation that takes too long, by a signal, where nothing but this computation goes on in the process.

Python code is ended, and arithmetic with long integers, which looks for signals too; other code in C goes on. It must
not know what is computed. Invariant: no signal of a limit arrives once `within` has returned.
"""

import signal
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

AGAIN_AFTER_S = 0.2


class OutOfTime(BaseException):
    """The limit is reached; no `Exception`, which the code that is to end might catch."""


def within(limit_s: float, compute: Callable[[], Result]) -> Result | None:
    """What `compute` returns, or None when that takes longer than `limit_s` of the process's computing time.

    Only the main thread gets signals, so that in any other there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        return compute()
    is_running = True

    def stop(*_: object) -> None:
        if is_running:
            raise OutOfTime

    before = signal.signal(signal.SIGPROF, stop)
    try:
        signal.setitimer(signal.ITIMER_PROF, limit_s, AGAIN_AFTER_S)  # Again, as a bare `except` may catch the first.
        return compute()
    except OutOfTime:
        return None
    finally:
        is_running = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
