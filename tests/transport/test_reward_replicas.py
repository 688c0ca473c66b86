"""Several replicas of one reward: names, health, turns; and what a dead or frozen one costs its callers."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2

from benchmarks.replica_loss import DISTURBED_S, TIMEOUT_S, disturb_replicas
from services.contracts.errors import RewardUnavailable
from services.contracts.records import Reward
from services.protos.reward.v1 import reward_pb2, reward_pb2_grpc
from services.transport.reward_client import RewardClient
from tests.reward_server.proxy import proxied
from tests.reward_server.serving import (
    IMPATIENT,
    Connect,
    ScriptedService,
    honest,
    make_sample,
    make_samples,
    response,
    results,
    scripted,
    until,
)

SERVICE_CONFIG = Path(reward_pb2.__file__).with_name("service_config.json")
NAMED = IMPATIENT.model_copy(update={"allow_plaintext": True, "refresh_s": 0.05})
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Names:
    """A resolver whose answer a test may change; an empty answer is a failure."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: Sequence[str] = addresses

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        if not self.addresses:
            raise OSError("Name or service not known")
        return self.addresses


async def test_a_name_that_stands_for_two_machines_is_two_replicas(connect: Connect) -> None:
    names = Names("127.0.0.1", "127.0.0.2")
    async with scripted(honest) as (address, first):
        port = int(address.rpartition(":")[2])
        async with scripted(honest, host="127.0.0.2", port=port) as (_, second):
            client = connect([f"rewards.internal:{port}"], NAMED, look_up=names)
            await client.describe()
            await until_all_answer(client, first, second)


async def score_until(client: RewardClient, condition: Callable[[], bool]) -> None:
    """Make calls, one after the other, until `condition` holds."""
    async with asyncio.timeout(10.0):
        while not condition():
            assert await client.score([make_sample()]) == [Reward(value=0.5)]


async def until_all_answer(client: RewardClient, *services: ScriptedService) -> None:
    before = [len(service.requests) for service in services]
    await score_until(client, lambda: all(len(s.requests) > count for s, count in zip(services, before, strict=True)))


async def test_machines_behind_a_name_come_and_go_while_calls_go_on(connect: Connect) -> None:
    names = Names("127.0.0.1")
    release = asyncio.Event()

    async def hold_the_first(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        if request.samples[0].completion == "first":
            await release.wait()
        return response(request, results(request))

    async with scripted(hold_the_first) as (address, old):
        port = int(address.rpartition(":")[2])
        async with scripted(honest, host="127.0.0.2", port=port) as (_, new):
            client = connect([f"rewards.internal:{port}"], NAMED, look_up=names)
            under_way = asyncio.create_task(client.score([make_sample(completion="first")]))
            await until(lambda: len(old.requests) == 1)
            names.addresses = ["127.0.0.2"]
            await until_all_answer(client, new)
            num_old = len(old.requests)
            for index in range(10):
                await client.score([make_sample(index)])
            assert len(old.requests) == num_old
            release.set()
            assert await under_way == [Reward(value=0.5)]


async def test_a_name_that_cannot_be_looked_up_is_told_and_waited_for(connect: Connect) -> None:
    names = Names()
    with pytest.raises(RewardUnavailable, match=r"rewards.internal:1 cannot be looked up: Name or service not known"):
        await connect(["rewards.internal:1"], NAMED, look_up=names).score([make_sample()])


async def test_a_name_that_no_resolver_takes_is_told_likewise(connect: Connect) -> None:
    with pytest.raises(RewardUnavailable, match=r"x{70}:1 cannot be looked up"):
        await connect([f"{'x' * 70}:1"], NAMED).score([make_sample()])


async def test_replicas_stay_known_while_their_name_cannot_be_looked_up(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    names = Names("127.0.0.1")
    async with scripted(honest) as (address, _):
        client = connect([f"rewards.internal:{address.rpartition(':')[2]}"], NAMED, look_up=names)
        await client.score([make_sample()])
        names.addresses = []

        await score_until(client, lambda: "going on with the reward servers that were known" in caplog.text)


async def test_a_replica_that_says_it_does_not_serve_is_passed_over_until_it_does(connect: Connect) -> None:
    servicer = health.aio.HealthServicer()
    async with scripted(honest, health_servicer=servicer) as (one, first), scripted(honest) as (two, second):
        client = connect([one, two], IMPATIENT.model_copy(update={"eject_s": 0.05}))
        await until_all_answer(client, first, second)
        await servicer.set("", NOT_SERVING)
        counts: list[int] = []

        def has_rested() -> bool:
            counts.append(len(first.requests))
            return len(counts) > 20 and counts[-1] == counts[-20]

        await score_until(client, has_rested)
        await servicer.set("", SERVING)
        await until_all_answer(client, first, second)


async def test_a_busy_replica_gets_fewer_calls(connect: Connect) -> None:
    never = asyncio.Event()

    async def hang(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        await never.wait()
        raise AssertionError

    async with scripted(hang) as (one, busy), scripted(honest) as (two, idle):
        client = connect([one, two], IMPATIENT)
        await client.describe()
        scoring = [asyncio.create_task(client.score([sample])) for sample in make_samples(40)]
        await until(lambda: len(idle.requests) >= 20)
        assert len(busy.requests) <= 20
        for task in scoring:
            task.cancel()


async def test_the_only_replica_need_not_sit_out(connect: Connect) -> None:
    hangs = iter([True, True])
    never = asyncio.Event()

    async def hang_twice(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        if next(hangs, False):
            await never.wait()
        return response(request, results(request))

    changes = {"timeout_s": 0.1, "eject_after": 2, "eject_s": 60.0, "unavailable_budget_s": 20.0}
    async with scripted(hang_twice) as (address, service):
        client = connect([address], IMPATIENT.model_copy(update=changes))
        assert await asyncio.wait_for(client.score([make_sample()]), 10.0) == [Reward(value=0.5)]

    assert len(service.requests) == 3


async def test_a_client_of_another_kind_fails_over_by_the_service_config() -> None:
    """gRPC's own round robin, health watch and retries, as any language has them; its calls are of the plain stub."""
    options = [("grpc.service_config", SERVICE_CONFIG.read_text())]
    request = reward_pb2.ScoreRequest(request_id="r")
    async with scripted(honest) as (one, first), AsyncExitStack() as stack:
        two, second = await stack.enter_async_context(scripted(honest))
        # As when its process dies, the connection is gone before the server cancels what is under way.
        proxy = await stack.enter_async_context(proxied(two))
        async with grpc.aio.insecure_channel(f"ipv4:{one},{proxy.address}", options=options) as channel:
            stub = reward_pb2_grpc.RewardServiceStub(channel)
            async with asyncio.timeout(10.0):
                while not (first.requests and second.requests):
                    await stub.Score(request)
            calls = [asyncio.ensure_future(stub.Score(request)) for _ in range(20)]
            await stack.aclose()
            calls += [asyncio.ensure_future(stub.Score(request)) for _ in range(20)]
            assert {answer.request_id for answer in await asyncio.gather(*calls)} == {"r"}


async def test_a_dead_and_a_frozen_replica_cost_no_call_and_come_back(tmp_path: Path) -> None:
    frozen, killed = await disturb_replicas(tmp_path)

    assert frozen.errors == killed.errors == []
    assert frozen.num_calls > 50 and killed.num_calls > 50
    assert frozen.num_ejections >= 1
    assert max(frozen.longest_s, killed.longest_s) < 3 * TIMEOUT_S < DISTURBED_S
    assert frozen.longest_later_s < TIMEOUT_S
