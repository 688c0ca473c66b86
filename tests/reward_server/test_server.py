"""The gRPC server: its services, limits, overload, and how it drains."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from reward_server.config import RewardServerConfig
from reward_server.function import RewardFunction
from reward_server.scorer import FunctionScorer
from reward_server.server import RewardServer
from services.contracts.errors import UserError
from services.contracts.records import Failure, FailureCode, Reward, RewardSample
from services.protos.reward.v1 import reward_pb2, reward_pb2_grpc
from services.transport.reward_codec import encode_sample
from tests.reward_server.serving import (
    IMPATIENT,
    Connect,
    completion_as_number,
    make_samples,
    serving,
    until,
)

NUMBER = RewardFunction(completion_as_number, minimum=0.0)


@asynccontextmanager
async def stub(address: str) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield reward_pb2_grpc.RewardServiceStub(channel)


def request(samples: Sequence[RewardSample]) -> reward_pb2.ScoreRequest:
    messages = [encode_sample(sample, with_token_ids=False) for sample in samples]
    return reward_pb2.ScoreRequest(request_id="r", samples=messages)


async def refusal(address: str, asked: reward_pb2.ScoreRequest) -> tuple[grpc.StatusCode, str]:
    async with stub(address) as service:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await service.Score(asked, timeout=5.0)
    return error.value.code(), error.value.details() or ""


async def test_too_many_samples_in_a_call_are_refused_and_the_limit_is_declared(connect: Connect) -> None:
    config = RewardServerConfig(port=0, max_samples_per_call=3)
    async with serving(NUMBER, config) as address:
        code, details = await refusal(address, request(make_samples(4)))
        client = connect([address], IMPATIENT)
        assert (await client.describe()).max_batch_samples == 3
        assert len(await client.score(make_samples(4))) == 4

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "4 samples in one call; this server takes at most 3"


async def test_ids_given_twice_are_refused() -> None:
    async with serving(NUMBER) as address:
        code, details = await refusal(address, request(make_samples(1) * 2))

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "'0-0/0' is given more than once" in details


async def test_a_request_that_is_too_large_is_refused() -> None:
    async with serving(NUMBER, RewardServerConfig(port=0, max_message_bytes=1024)) as address:
        code, details = await refusal(address, request(make_samples(100)))

    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in details


async def test_an_empty_call_is_answered() -> None:
    async with serving(NUMBER) as address, stub(address) as service:
        answer = await service.Score(reward_pb2.ScoreRequest(request_id="r"), timeout=5.0)
    assert answer == reward_pb2.ScoreResponse(request_id="r")


async def test_a_sample_with_a_foreign_role_fails_alone() -> None:
    asked = request(make_samples(2))
    asked.samples[0].messages.add(role="oracle", content="x")
    async with serving(NUMBER) as address, stub(address) as service:
        answer = await service.Score(asked, timeout=5.0)

    assert "oracle" in answer.results[0].failure.message
    assert answer.results[1].reward.value == 1.0


async def test_calls_of_several_clients_share_a_batch(connect: Connect) -> None:
    sizes: list[int] = []

    def score(samples: Sequence[RewardSample]) -> list[float]:
        sizes.append(len(samples))
        return [float(sample.completion) for sample in samples]

    config = RewardServerConfig(port=0, max_batch_samples=12, max_wait_s=5.0)
    async with serving(RewardFunction(score, batched=True), config) as address:
        clients = [connect([address], IMPATIENT) for _ in range(3)]
        outcomes = await asyncio.gather(*(client.score(make_samples(4)) for client in clients))

    assert sizes == [12]
    assert outcomes == [[Reward(value=float(index)) for index in range(4)]] * 3


async def test_overload_is_refused_with_a_status_that_clients_retry(connect: Connect) -> None:
    release = threading.Event()
    started: list[str] = []

    def wait(sample: RewardSample) -> float:
        started.append(sample.id)
        release.wait()
        return 1.0

    config = RewardServerConfig(port=0, max_samples_per_call=2, max_pending_samples=2)
    async with serving(RewardFunction(wait), config) as address:
        busy = asyncio.create_task(connect([address], IMPATIENT).score(make_samples(2)))
        await until(lambda: len(started) == 2)
        code, details = await refusal(address, request(make_samples(1)))
        patient = IMPATIENT.model_copy(update={"unavailable_budget_s": 20.0})
        waiting = asyncio.create_task(connect([address], patient).score(make_samples(1)))
        release.set()
        assert await busy == [Reward(value=1.0)] * 2
        assert await waiting == [Reward(value=1.0)]

    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "overloaded: 2 samples are pending" in details


async def test_more_calls_than_allowed_are_refused_likewise() -> None:
    release = asyncio.Event()
    started = asyncio.Event()

    async def wait(sample: RewardSample) -> float:
        started.set()
        await release.wait()
        return 1.0

    async with (
        serving(RewardFunction(wait), RewardServerConfig(port=0, max_calls=1)) as address,
        stub(address) as service,
    ):
        call = service.Score(request(make_samples(1)), timeout=20.0)
        await started.wait()
        code, _ = await refusal(address, request(make_samples(1)))
        release.set()
        assert (await call).results[0].reward.value == 1.0

    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_reward_that_is_too_slow_times_out_by_itself(connect: Connect) -> None:
    async def hang(sample: RewardSample) -> float:
        await asyncio.Event().wait()
        return 0.0

    async with serving(RewardFunction(hang), RewardServerConfig(port=0, timeout_s=0.05)) as address:
        (outcome,) = await connect([address], IMPATIENT).score(make_samples(1))

    assert isinstance(outcome, Failure) and outcome.code is FailureCode.TIMEOUT


async def test_samples_whose_caller_has_left_are_not_scored(connect: Connect) -> None:
    scored: list[str] = []
    go_on = asyncio.Event()

    async def slow(sample: RewardSample) -> float:
        scored.append(sample.completion)
        await go_on.wait()
        return 0.0

    config = RewardServerConfig(port=0, num_threads=2, drain_s=20.0)
    server = RewardServer(FunctionScorer(RewardFunction(slow), timeout_s=20.0, num_threads=2), config)
    client = connect([await server.start()], IMPATIENT)
    leaving = asyncio.create_task(client.score(make_samples(50)))
    await until(lambda: len(scored) == 2)
    leaving.cancel()
    await until(lambda: server._servicer.batcher.num_pending == 0)
    go_on.set()
    assert await client.score(make_samples(1)) == [Reward(value=0.0)]
    await server.drain()

    assert scored == ["0", "1", "0"]


async def test_draining_finishes_what_was_accepted_and_refuses_the_rest(connect: Connect) -> None:
    release = threading.Event()
    started = threading.Event()

    def wait(sample: RewardSample) -> float:
        started.set()
        release.wait()
        return 1.0

    config = RewardServerConfig(port=0, drain_s=20.0)
    server = RewardServer(FunctionScorer(RewardFunction(wait), timeout_s=20.0, num_threads=2), config)
    address = await server.start()
    in_flight = asyncio.create_task(connect([address], IMPATIENT).score(make_samples(1)))
    await until(started.is_set)
    draining = asyncio.create_task(server.drain())
    async with grpc.aio.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        status = await health.Check(health_pb2.HealthCheckRequest(), timeout=5.0)
    code, details = await refusal(address, request(make_samples(1)))
    release.set()

    assert status.status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert code is grpc.StatusCode.UNAVAILABLE and "shutting down" in details
    assert await in_flight == [Reward(value=1.0)]
    await asyncio.wait_for(draining, 5.0)


async def test_draining_gives_up_on_a_call_after_its_time() -> None:
    started = asyncio.Event()

    async def hang(sample: RewardSample) -> float:
        started.set()
        await asyncio.Event().wait()
        return 0.0

    config = RewardServerConfig(port=0, drain_s=0.1)
    server = RewardServer(FunctionScorer(RewardFunction(hang), timeout_s=60.0, num_threads=1), config)
    address = await server.start()
    async with stub(address) as service:
        call = service.Score(request(make_samples(1)), timeout=20.0)
        await started.wait()
        await asyncio.wait_for(server.drain(), 5.0)
        with pytest.raises(grpc.aio.AioRpcError):
            await call


async def test_a_port_in_use_is_said_to_be() -> None:
    async with serving(NUMBER) as address:
        port = int(address.rpartition(":")[2])
        second = RewardServer(FunctionScorer(NUMBER, timeout_s=1.0, num_threads=1), RewardServerConfig(port=port))
        with pytest.raises(UserError, match=f"cannot listen on {address}: the port is taken"):
            await second.start()
