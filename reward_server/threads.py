"""Runs blocking functions in threads that may be given up on.

It must not know what it runs. Invariant: no call waits for a thread that was given up on, such threads are at most
`max_abandoned`, and none of them keeps the process alive: they are daemons, unlike those of the standard executor.
"""

import asyncio
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Generic, TypeAlias, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")
Inbox: TypeAlias = "SimpleQueue[Callable[[], bool]]"
"""What a thread is given to do, one thing after the other; the answer is whether it goes on."""


class TooManyAbandoned(Exception):
    """So many calls never returned that no further thread is started."""


class AbandonableThreads(Generic[Argument, Result]):
    """A daemon thread for each call that is under way, kept for later calls; the caller bounds how many these are."""

    def __init__(self, *, max_abandoned: int) -> None:
        self._max_abandoned = max_abandoned
        self._num_abandoned = 0
        self._last_abandoned = 0.0
        self._all_back = asyncio.Event()
        self._all_back.set()
        self._idle: list[Inbox] = []
        weakref.finalize(self, end_all, self._idle)

    async def run(self, function: Callable[[Argument], Result], argument: Argument) -> Result:
        """What `function(argument)` returns; it must not raise. Cancelling this gives up on the thread.

        Raises:
            TooManyAbandoned: `max_abandoned` earlier calls were given up on and run still.
        """
        if self._num_abandoned >= self._max_abandoned:
            raise TooManyAbandoned(f"{self._num_abandoned} calls outlived their timeout and run still")
        loop = asyncio.get_running_loop()
        returned: asyncio.Future[Result] = loop.create_future()
        inbox = self._idle.pop() if self._idle else start_thread()

        def settle(result: Result) -> None:
            if returned.cancelled():
                self._num_abandoned -= 1
                if not self._num_abandoned:
                    self._all_back.set()
                inbox.put(end)
            else:
                self._idle.append(inbox)
                returned.set_result(result)

        def work() -> bool:
            result = function(argument)
            try:
                loop.call_soon_threadsafe(settle, result)
            except RuntimeError:  # The loop is closed: nobody waits any more.
                return False
            return True

        inbox.put(work)
        try:
            return await returned
        except asyncio.CancelledError:
            if returned.cancelled():  # Else it returned in the very moment in which it was given up.
                self._num_abandoned += 1
                self._last_abandoned = loop.time()
                self._all_back.clear()
            raise

    async def wait_for_abandoned(self, patience_s: float) -> None:
        """Until no thread runs that was given up on, but no longer than `patience_s` after the last of these was."""
        left_s = self._last_abandoned + patience_s - asyncio.get_running_loop().time()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(left_s, 0.0)):
                await self._all_back.wait()

    def close(self) -> None:
        """End the threads that do nothing; so does letting go of this."""
        end_all(self._idle)


def end() -> bool:
    """The last thing that a thread is given."""
    return False


def end_all(idle: list[Inbox]) -> None:
    """End these threads."""
    while idle:
        idle.pop().put(end)


def start_thread() -> Inbox:
    """A thread that does what it is given."""
    inbox: Inbox = SimpleQueue()

    def go_on() -> None:
        while inbox.get()():  # No deadline: whoever started the thread ends it.
            pass

    threading.Thread(target=go_on, name="reward", daemon=True).start()
    return inbox
