"""Awaiting without the cost of waiting: no task where nothing waits, everything side by side where something does."""

import asyncio
from collections.abc import Callable

import pytest

from reward_server.stepping import Ended, begin, go_on, side_by_side

NUMBERS = list(range(6))


class Counted:
    """Doubles numbers, and remembers in which tasks and how many at once."""

    def __init__(self, waits: Callable[[int], bool]) -> None:
        self.tasks: list[object] = []
        self.most = self._running = 0
        self._waits = waits

    async def double(self, number: int, on_wait: Callable[[], None]) -> int:
        self.tasks.append(asyncio.current_task())
        self._running += 1
        self.most = max(self.most, self._running)
        try:
            if self._waits(number):
                on_wait()
                await asyncio.sleep(0.001 * (7 - number))  # The last is done first.
        finally:
            self._running -= 1
        return 2 * number


async def test_what_does_not_wait_needs_no_other_task() -> None:
    counted = Counted(lambda number: False)
    assert await side_by_side(counted.double, NUMBERS, at_once=4) == [0, 2, 4, 6, 8, 10]
    assert set(counted.tasks) == {asyncio.current_task()}


@pytest.mark.parametrize(("at_once", "most"), [(1, 1), (3, 3), (100, 6)])
async def test_what_waits_is_side_by_side_up_to_the_bound_and_in_order(at_once: int, most: int) -> None:
    counted = Counted(lambda number: True)
    assert await side_by_side(counted.double, NUMBERS, at_once=at_once) == [0, 2, 4, 6, 8, 10]
    assert counted.most == most


async def test_one_that_waits_does_not_hold_up_those_behind_it() -> None:
    go = asyncio.Event()
    done: list[int] = []

    async def last_lets_first_go(number: int, on_wait: Callable[[], None]) -> int:
        if number == 0:
            on_wait()
            await asyncio.wait_for(go.wait(), 5.0)
        done.append(number)
        if number == 5:
            go.set()
        return number

    assert await side_by_side(last_lets_first_go, NUMBERS, at_once=2) == NUMBERS
    assert done == [1, 2, 3, 4, 5, 0]


async def test_all_that_was_begun_is_cancelled_with_its_caller() -> None:
    counted = Counted(lambda number: True)
    ended: list[int] = []

    async def wait_for_ever(number: int, on_wait: Callable[[], None]) -> None:
        on_wait()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    calling = asyncio.create_task(side_by_side(wait_for_ever, NUMBERS, at_once=3))
    for _ in range(5):
        await asyncio.sleep(0)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    await asyncio.sleep(0)
    assert sorted(ended) == [0, 1, 2]
    assert counted.most == 0


async def test_long_work_that_never_waits_lets_others_have_their_turn() -> None:
    turns: list[str] = []

    async def work(number: int, on_wait: Callable[[], None]) -> None:
        until = asyncio.get_running_loop().time() + 0.006
        while asyncio.get_running_loop().time() < until:
            pass
        turns.append("work")

    async def other() -> None:
        turns.append("other")

    await asyncio.gather(side_by_side(work, NUMBERS, at_once=2), other())
    assert turns.index("other") == 1


async def test_a_coroutine_that_was_begun_goes_on_in_the_same_task_with_its_timeouts() -> None:
    async def slow() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            pass
        await asyncio.sleep(0)
        return "done"

    call = slow()
    awaited = begin(call)
    assert not isinstance(awaited, Ended)
    async with asyncio.timeout(5.0):
        assert await go_on(call, awaited) == "done"


async def test_an_error_passes_from_both_parts_of_a_coroutine() -> None:
    async def broken(waits: bool) -> None:
        if waits:
            await asyncio.sleep(0)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        begin(broken(False))
    call = broken(True)
    awaited = begin(call)
    with pytest.raises(ValueError, match="broken"):
        await go_on(call, awaited)
