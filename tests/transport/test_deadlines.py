"""Calls that block, awaited with a deadline."""

import asyncio
import threading

import pytest

from services.contracts.errors import DeadlineExceeded
from services.transport.deadlines import soon


async def test_a_blocking_call_gives_its_result_and_the_loop_goes_on() -> None:
    released = threading.Event()

    def work() -> bool:
        return released.wait(5)

    waiting = asyncio.ensure_future(soon(5, work, waited_for="it", advice="none"))
    await asyncio.sleep(0)
    released.set()  # By this loop, which therefore is not blocked.
    assert await waiting


async def test_what_the_call_raises_is_raised_also_when_it_is_a_timeout() -> None:
    def work() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own") as raised:
        await soon(5, work, waited_for="it", advice="none")
    assert not isinstance(raised.value, DeadlineExceeded)


async def test_a_call_that_does_not_end_is_left_behind_and_may_end_later() -> None:
    released, ended = threading.Event(), threading.Event()

    def work() -> None:
        released.wait(5)
        ended.set()

    with pytest.raises(DeadlineExceeded, match=r"waited 0 s for it; wait longer"):
        await soon(0.02, work, waited_for="it", advice="wait longer")
    released.set()
    assert await asyncio.to_thread(ended.wait, 5)
