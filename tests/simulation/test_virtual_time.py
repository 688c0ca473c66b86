"""Time jumps, deadlocks are named, and a kill stops everything."""

import asyncio
import time

import pytest

from tests.simulation.virtual_time import Deadlock, Killed, VirtualTimeLoop


def test_an_hour_passes_at_once_and_in_order() -> None:
    seen: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((name, asyncio.get_running_loop().time()))

    async def main() -> None:
        await asyncio.gather(sleeper("late", 3600.0), sleeper("early", 1.0))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 60.0)

    loop = VirtualTimeLoop()
    started = time.monotonic()
    loop.run(main())
    assert time.monotonic() - started < 5.0
    assert seen == [("early", 1.0), ("late", 3600.0)]
    assert loop.time() == pytest.approx(3660.0)


def test_a_deadlock_names_who_waits_and_where() -> None:
    async def main() -> None:
        never = asyncio.Event()
        await asyncio.create_task(never.wait(), name="the task that waits")

    with pytest.raises(Deadlock, match=r"no timer is set at 0\.000 s(.|\n)*the task that waits at .*locks"):
        VirtualTimeLoop().run(main())


def test_what_goes_on_for_ever_is_stuck() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        def again() -> None:
            loop.call_later(1.0, again)

        again()
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match="no end is in sight"):
        VirtualTimeLoop(most_s=100.0).run(main())


def test_a_kill_comes_between_two_timers_and_before_anything_is_cleaned_up() -> None:
    seen: list[str] = []

    async def main() -> None:
        try:
            await asyncio.sleep(2.0)
            seen.append("woke")
            await asyncio.sleep(100.0)
        finally:
            seen.append("cleaned up")

    loop = VirtualTimeLoop()
    loop.kill_at = (50.0, 0)
    with pytest.raises(Killed):
        loop.run(main(), on_kill=lambda: seen.append("killed"))
    assert seen == ["woke", "killed", "cleaned up"]
    assert loop.time() == 50.0
