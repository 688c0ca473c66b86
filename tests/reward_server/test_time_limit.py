"""The time limit of a computation."""

import asyncio
import signal
import time

import pytest

from reward_server.time_limit import within

BOUND_S = 5.0
"""Of processor time; without the limit each of these would take far longer, or never end."""


def spin() -> None:
    while True:
        pass


def spin_and_catch_once() -> None:
    try:
        spin()
    except:  # noqa: E722 - what careless code does
        spin()


@pytest.mark.parametrize("compute", [spin, spin_and_catch_once, lambda: 3**1_000_000_000])
def test_a_computation_without_end_gives_nothing(compute: object) -> None:
    started = time.process_time()

    assert within(0.2, compute) is None  # type: ignore[arg-type]  # a parameter of pytest
    assert time.process_time() - started < BOUND_S


def test_what_is_done_in_time_is_returned_and_nothing_is_left_behind() -> None:
    before = signal.getsignal(signal.SIGPROF)

    assert within(60.0, lambda: 7) == 7
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGPROF) is before


async def test_in_another_thread_there_is_no_limit() -> None:
    assert await asyncio.to_thread(within, 60.0, lambda: 7) == 7
