"""Ctrl-C, in two steps: the first asks the run to stop at the next step, the second stops it at once.

It must not know what is being stopped. SIGTERM, which schedulers send, and SIGHUP, which a closed terminal sends, count
as the first Ctrl-C and never as the second: who ends a whole tree of processes sends them to a pipeline and to its
stage, which then hears them twice.
"""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def heeded() -> list[signal.Signals]:
    """The signals that end a run; not SIGHUP where `nohup` has it ignored."""
    return [number for number in _SIGNALS if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN]


class StopRequest:
    """Whether someone asked the run to stop, and whether it can finish a step first.

    Attributes:
        on_request: called at the first request that may finish a step.
    """

    def __init__(self) -> None:
        self.requested = False
        self.finishes_step = False
        self.on_request: Callable[[], None] = lambda: None


@contextmanager
def catch_interrupts(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """While entered, signals set the yielded request; the current task is cancelled when it should not wait.

    Args:
        say: shows the user what happens now.
    """
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    request = StopRequest()

    def on_signal(number: int) -> None:
        if request.requested and number != signal.SIGINT:
            return
        if request.finishes_step and not request.requested:
            say("stopping after this step; Ctrl-C again stops at once")
            request.on_request()
        else:
            task.cancel()
        request.requested = True

    numbers = heeded()
    for number in numbers:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield request
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
