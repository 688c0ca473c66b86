"""Awaiting without the cost of waiting: what does not have to wait takes no task, no timer and no turn of the loop.

It must not know what is awaited. Invariants: a coroutine runs in one task from its beginning to its end, so that
timeouts within it hold; what was started is cancelled with whoever waits for it.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from types import coroutine
from typing import Any, Generic, TypeAlias, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")
Begun: TypeAlias = Coroutine[Any, Any, Result]  # Any: what event loop and futures tell each other

LONGEST_TURN_S = 0.005


@dataclass(frozen=True, slots=True)
class Ended(Generic[Result]):
    """A coroutine that is at its end."""

    result: Result


def begin(begun: Begun[Result]) -> Ended[Result] | object:
    """Run a coroutine until it ends, or has to wait; then gives what it waits for, which `go_on` takes."""
    try:
        awaited: object = begun.send(None)
        return awaited
    except StopIteration as end:
        return Ended(end.value)


@coroutine
def go_on(begun: Begun[Result], awaited: object) -> Generator[object, object, Result]:
    """Await the rest of a coroutine, in the task that began it."""
    try:
        while True:
            try:
                told = yield awaited
            except BaseException as error:  # noqa: BLE001 - it is the coroutine's to handle, whatever it is
                awaited = begun.throw(error)
            else:
                awaited = begun.send(told)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # StopIteration does not tell


async def side_by_side(
    function: Callable[[Argument, Callable[[], None]], Begun[Result]], arguments: Sequence[Argument], *, at_once: int
) -> list[Result]:
    """What `function` gives for each argument, in order; at most `at_once` are under way.

    They are worked off one after the other until one of them waits, which it says by its second argument; whenever one
    does, the next begins beside it.
    """
    results: dict[int, Result] = {}
    left = iter(enumerate(arguments))
    beside: list[asyncio.Task[None]] = []

    def begin_next() -> None:
        if len(beside) + 1 < min(at_once, len(arguments)):
            beside.append(asyncio.create_task(work_off()))

    async def work_off() -> None:
        until = time.monotonic() + LONGEST_TURN_S
        for index, argument in left:
            if time.monotonic() > until:  # Others want to be answered too.
                await asyncio.sleep(0)
                until = time.monotonic() + LONGEST_TURN_S
            results[index] = await function(argument, begin_next)

    try:
        await work_off()
        for task in beside:  # It may grow meanwhile.
            await task
    finally:
        for task in beside:
            task.cancel()
    return [results[index] for index in range(len(arguments))]
