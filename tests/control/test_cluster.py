"""Rooms and processes on a Ray that is started here: they come, freeze, end and come again."""

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator

import psutil
import pytest
from ray._private.authentication_test_utils import authentication_env_guard, reset_auth_token_state

from services.contracts.errors import DeadlineExceeded, UserError, WorkerLost
from services.control.cluster import Cluster
from services.control.config import ClusterConfig
from services.control.placement import Demand

RANKS = [Demand(name=f"learner rank {rank}", cpus=1) for rank in range(2)]
WORKER, JOINER, ONE_TOO_MANY = (Demand(name=f"rollout worker {worker}", cpus=1) for worker in range(3))


class Sleeper:
    """Sleeps in a child of its own session, and in its calls."""

    async def nap(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    async def child(self) -> int:
        return subprocess.Popen(["sleep", "60"], start_new_session=True).pid  # noqa: ASYNC220  # It returns at once.

    async def miss(self) -> None:
        raise DeadlineExceeded(waited_for="the weights", waited_s=7, advice="publish them again")


class Sampler:
    """Samples for a minute, unless it is told to stop."""

    def __init__(self) -> None:
        self.under_way = 0

    async def sample(self) -> None:
        self.under_way += 1
        try:
            await asyncio.sleep(60)
        finally:
            self.under_way -= 1

    async def count(self) -> int:
        return self.under_way


class Worker:
    """Does one thing at a time."""

    def work(self, seconds: float) -> None:
        time.sleep(seconds)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """With cores for two ranks, a worker and a worker to come."""
    with authentication_env_guard():
        reset_auth_token_state()
        with Cluster(ClusterConfig(object_store_gib=0.11), [*RANKS, WORKER], spare=[JOINER]) as started:
            yield started
    reset_auth_token_state()


async def test_rooms_come_and_go_within_what_the_cluster_has(cluster: Cluster) -> None:
    ranks = await cluster.reserve_together(RANKS, timeout_s=10)
    first = await cluster.reserve(WORKER, timeout_s=10)
    second = await cluster.reserve(JOINER, timeout_s=10)
    with pytest.raises(UserError, match=r"no machine has room for rollout worker 2: 1 CPU; free: 0 CPU of 4 CPU; "):
        await cluster.reserve(ONE_TOO_MANY, timeout_s=60)
    cluster.release(first)
    third = await cluster.reserve(ONE_TOO_MANY, timeout_s=10)
    for room in (ranks[0], second, third):
        cluster.release(room)


async def test_whoever_waits_for_a_room_does_not_hold_up_the_others(cluster: Cluster) -> None:
    rooms = await cluster.reserve_together([*RANKS, WORKER, JOINER], timeout_s=10)
    waiting = asyncio.ensure_future(cluster.reserve(ONE_TOO_MANY, timeout_s=10))
    await asyncio.sleep(0)
    cluster.release(rooms[0])
    cluster.release(await waiting)


async def test_a_frozen_process_ends_with_its_children_and_its_room_takes_the_next(cluster: Cluster) -> None:
    room = await cluster.reserve(WORKER, timeout_s=10)
    actor = cluster.spawn(Sleeper, room, {}, environment={}, concurrency=10)
    napping = asyncio.ensure_future(actor.call("nap", 60.0, timeout_s=50))
    location = await actor.locate(timeout_s=20)
    processes = [psutil.Process(pid) for pid in (location.pid, await actor.call("child", timeout_s=10))]
    processes[0].suspend()

    await actor.kill(timeout_s=20)

    assert psutil.wait_procs(processes, timeout=1)[1] == []
    with pytest.raises(WorkerLost, match="rollout worker 0"):
        await asyncio.wait_for(napping, 1)
    started = time.monotonic()
    with pytest.raises(WorkerLost):
        await actor.call("nap", 0.0, timeout_s=50)
    await actor.kill(timeout_s=20)  # Quietly: it is gone.
    assert time.monotonic() - started < 1
    successor = cluster.spawn(Sleeper, room, {}, environment={}, concurrency=10)
    assert await successor.call("nap", 0.0, timeout_s=20) == 0.0
    await successor.kill(timeout_s=20)
    cluster.release(room)


async def test_a_process_has_a_pulse_while_it_is_busy_and_none_while_it_is_frozen(cluster: Cluster) -> None:
    room = await cluster.reserve(WORKER, timeout_s=10)
    actor = cluster.spawn(Worker, room, {}, environment={}, pulse=True)
    process = psutil.Process((await actor.locate(timeout_s=20)).pid)
    working = asyncio.ensure_future(actor.call("work", 60.0, timeout_s=50))
    await actor.pulse(timeout_s=5)
    process.suspend()
    with pytest.raises(DeadlineExceeded, match="waited 1 s for pulse of rollout worker 0"):
        await actor.pulse(timeout_s=1)
    process.resume()
    await actor.pulse(timeout_s=5)
    await actor.kill(timeout_s=20)
    with pytest.raises(WorkerLost):
        await working
    cluster.release(room)


@pytest.mark.parametrize("cancels", [True, False])
async def test_what_a_cancelled_call_asked_for_ends_where_that_is_wanted(cluster: Cluster, cancels: bool) -> None:
    room = await cluster.reserve(WORKER, timeout_s=10)
    actor = cluster.spawn(Sampler, room, {}, environment={}, concurrency=10)
    sampling = [asyncio.ensure_future(actor.call("sample", timeout_s=50, cancels=cancels)) for _ in range(4)]

    async def counts(wanted: int) -> bool:
        return bool(await actor.call("count", timeout_s=20) == wanted)

    await reached(lambda: counts(4))
    for call in sampling:
        call.cancel()
    await asyncio.wait(sampling)
    if cancels:
        await reached(lambda: counts(0))
    else:
        assert await counts(4)
    await actor.kill(timeout_s=20)
    cluster.release(room)


async def reached(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until the condition holds; fail where it does not within ten seconds."""
    deadline = time.monotonic() + 10
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_deadline_is_told_by_whoever_missed_it(cluster: Cluster) -> None:
    room = await cluster.reserve(WORKER, timeout_s=10)
    actor = cluster.spawn(Sleeper, room, {}, environment={}, concurrency=10)
    with pytest.raises(DeadlineExceeded, match="waited 7 s for the weights; publish them again"):
        await actor.call("miss", timeout_s=20)
    with pytest.raises(DeadlineExceeded, match="waited 0 s for nap of rollout worker 0"):
        await actor.call("nap", 30.0, timeout_s=0.1)
    cluster.release(room)


async def test_ranks_that_start_anew_in_the_same_rooms_get_another_port(cluster: Cluster) -> None:
    rooms = await cluster.reserve_together(RANKS, timeout_s=10)
    addresses = [await cluster.address_for(rooms[0], timeout_s=20) for _ in range(2)]
    assert addresses[0][0] == addresses[1][0]
    assert addresses[0][1] != addresses[1][1]
    cluster.release(rooms[0])
