"""Runs blocking functions in threads that may be given up on.

It must not know what it runs. Invariant: no call waits for a thread that was given up on, such threads are at most
`max_abandoned`, and none of them keeps the process alive: they are daemons, unlike those of the standard executor.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class TooManyAbandoned(Exception):
    """So many calls never returned that no further thread is started."""


class AbandonableThreads(Generic[Argument, Result]):
    """One daemon thread a call; the caller bounds how many calls it makes at once."""

    def __init__(self, *, max_abandoned: int) -> None:
        self._max_abandoned = max_abandoned
        self._num_abandoned = 0

    async def run(self, function: Callable[[Argument], Result], argument: Argument) -> Result:
        """What `function(argument)` returns; it must not raise. Cancelling this gives up on the thread.

        Raises:
            TooManyAbandoned: `max_abandoned` earlier calls were given up on and run still.
        """
        if self._num_abandoned >= self._max_abandoned:
            raise TooManyAbandoned(f"{self._num_abandoned} calls outlived their timeout and run still")
        loop = asyncio.get_running_loop()
        returned: asyncio.Future[Result] = loop.create_future()

        def settle(result: Result) -> None:
            if returned.cancelled():
                self._num_abandoned -= 1
            else:
                returned.set_result(result)

        def work() -> None:
            result = function(argument)
            with suppress(RuntimeError):  # The loop is closed: nobody waits any more.
                loop.call_soon_threadsafe(settle, result)

        threading.Thread(target=work, name="reward", daemon=True).start()
        try:
            return await returned
        except asyncio.CancelledError:
            self._num_abandoned += 1
            raise
