"""Ctrl-C once finishes the step, twice stops at once."""

import asyncio
import os
import signal

import pytest

from services.control.interrupts import catch_interrupts


async def test_the_first_signal_asks_and_the_second_cancels() -> None:
    asked: asyncio.Queue[str] = asyncio.Queue()

    async def two_signals() -> None:
        with catch_interrupts(asked.put_nowait) as stop:
            stop.finishes_step = True
            stop.on_request = lambda: asked.put_nowait("a pause ends")
            os.kill(os.getpid(), signal.SIGINT)
            assert "stopping after this step" in await asyncio.wait_for(asked.get(), 5)
            assert await asyncio.wait_for(asked.get(), 5) == "a pause ends"
            assert stop.requested
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(5)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(two_signals())


async def test_before_there_is_a_step_to_finish_the_first_signal_cancels() -> None:
    async def one_signal() -> None:
        with catch_interrupts(print):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(5)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(one_signal())


async def test_a_second_sigterm_is_the_first_heard_twice() -> None:
    asked: asyncio.Queue[str] = asyncio.Queue()
    with catch_interrupts(asked.put_nowait) as stop:
        stop.finishes_step = True
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.05)
    assert (stop.requested, asked.qsize()) == (True, 1)


async def test_a_closed_terminal_asks_as_sigterm_does() -> None:
    asked: asyncio.Queue[str] = asyncio.Queue()
    with catch_interrupts(asked.put_nowait) as stop:
        stop.finishes_step = True
        os.kill(os.getpid(), signal.SIGHUP)
        assert "stopping after this step" in await asyncio.wait_for(asked.get(), 5)
    assert stop.requested


async def test_what_nohup_has_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with catch_interrupts(print) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.05)
        assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
