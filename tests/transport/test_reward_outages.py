"""The reward client against servers that fail, hang, die and come back."""

import asyncio
import os
import signal
import time
from pathlib import Path

import grpc
import pytest

from reward_server.child import RewardServerChild
from reward_server.config import RewardServerConfig, RewardServiceConfig
from reward_server.function import RewardFunction
from services.contracts.errors import RewardContractError, RewardUnavailable
from services.contracts.records import Failure, FailureCode, Reward
from services.protos.reward.v1 import reward_pb2
from services.transport.reward_client import RewardClient
from tests.reward_server.serving import (
    IMPATIENT,
    StatusError,
    completion_as_number,
    failures,
    honest,
    make_sample,
    make_samples,
    response,
    results,
    scripted,
    serving,
    until,
)


async def test_a_sample_that_fails_for_now_is_tried_again_alone() -> None:
    async def fail_first_sample_once(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        first, *rest = results(request)
        if len(request.samples) == 3:
            (first, *_) = failures(request)
        return response(request, [first, *rest])

    async with scripted(fail_first_sample_once) as (address, service):
        outcomes = await RewardClient([address], IMPATIENT).score(make_samples(3))

    assert outcomes == [Reward(value=0.5)] * 3
    assert [len(request.samples) for request in service.requests] == [3, 1]
    assert len({request.request_id for request in service.requests}) == 2


async def test_a_sample_that_keeps_failing_ends_as_its_failure() -> None:
    async def fail(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        return response(request, failures(request))

    async with scripted(fail) as (address, service):
        (outcome,) = await RewardClient([address], IMPATIENT).score([make_sample()])

    assert outcome == Failure(code=FailureCode.TIMEOUT, message="scripted", retryable=True)
    assert len(service.requests) == IMPATIENT.max_attempts


async def test_a_sample_that_is_refused_for_good_is_not_tried_again() -> None:
    async def refuse(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        return response(request, failures(request, "INVALID_SAMPLE", retryable=False))

    async with scripted(refuse) as (address, service):
        (outcome,) = await RewardClient([address], IMPATIENT).score([make_sample()])

    assert isinstance(outcome, Failure) and outcome.code is FailureCode.INVALID_SAMPLE
    assert len(service.requests) == 1


async def test_a_service_that_says_it_is_out_is_waited_for_and_then_reported() -> None:
    async def out(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        return response(request, failures(request, "UNAVAILABLE"))

    async with scripted(out) as (address, service):
        with pytest.raises(RewardUnavailable, match="scripted"):
            await RewardClient([address], IMPATIENT).score([make_sample()])

    assert len(service.requests) > IMPATIENT.max_attempts


async def test_overload_is_waited_out() -> None:
    overloaded = iter([True] * 5)

    async def reply(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        if next(overloaded, False):
            raise StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too busy")
        return response(request, results(request))

    async with scripted(reply) as (address, _):
        assert await RewardClient([address], IMPATIENT).score([make_sample()]) == [Reward(value=0.5)]


async def test_a_server_that_crashes_on_a_call_is_tried_a_few_times_and_then_blamed() -> None:
    async def crash(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        raise RuntimeError("bug in the server")

    async with scripted(crash) as (address, service):
        with pytest.raises(RewardContractError, match=r"3 attempts: .*UNKNOWN.*bug in the server"):
            await RewardClient([address], IMPATIENT).score([make_sample()])

    assert len(service.requests) == 3


async def test_a_request_too_large_for_the_server_names_the_setting_to_lower() -> None:
    config = RewardServerConfig(port=0, max_message_bytes=2000, drain_s=0.0)
    async with serving(RewardFunction(completion_as_number), config) as address:
        with pytest.raises(RewardContractError, match=r"larger than max.*lower reward.max_request_bytes"):
            await RewardClient([address], IMPATIENT).score([make_sample(completion="1" * 3000)])


async def test_a_call_to_a_hanging_server_ends_with_its_deadline() -> None:
    never = asyncio.Event()

    async def hang(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        await never.wait()
        raise AssertionError

    config = IMPATIENT.model_copy(update={"timeout_s": 0.1})
    async with scripted(hang) as (address, _):
        started = time.monotonic()
        with pytest.raises(RewardUnavailable, match=rf"{address} did not answer Score within 0.1 s"):
            await RewardClient([address], config).score([make_sample()])

    assert time.monotonic() - started < 5.0


async def test_a_hanging_server_is_passed_over_while_another_answers() -> None:
    never = asyncio.Event()

    async def hang(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        await never.wait()
        raise AssertionError

    config = IMPATIENT.model_copy(update={"timeout_s": 0.1, "eject_after": 2, "eject_s": 60.0})
    async with scripted(hang) as (bad, hanging), scripted(honest) as (good, _):
        client = RewardClient([bad, good], config)
        for index in range(20):
            assert await client.score([make_sample(index)]) == [Reward(value=0.5)]

    assert len(hanging.requests) == 2


async def test_a_dead_server_is_failed_over_at_once() -> None:
    async with scripted(honest) as (good, _):
        async with scripted(honest) as (dying, _):
            client = RewardClient([dying, good], IMPATIENT)
            await client.score(make_samples(2))
        started = time.monotonic()
        for index in range(10):
            assert await client.score([make_sample(index)]) == [Reward(value=0.5)]

    assert time.monotonic() - started < 1.0


async def test_a_server_that_comes_back_is_used_again(caplog: pytest.LogCaptureFixture) -> None:
    async with scripted(honest) as (address, _):
        client = RewardClient([address], IMPATIENT.model_copy(update={"unavailable_budget_s": 20.0}))
        await client.score([make_sample()])
    waiting = asyncio.create_task(client.score([make_sample()]))
    await until(lambda: "scoring waits" in caplog.text)
    async with scripted(honest, port=int(address.rpartition(":")[2])):
        assert await asyncio.wait_for(waiting, 5.0) == [Reward(value=0.5)]


async def test_a_server_that_comes_back_as_another_reward_is_refused() -> None:
    async with scripted(honest) as (address, _):
        client = RewardClient([address], IMPATIENT.model_copy(update={"unavailable_budget_s": 20.0}))
        await client.score([make_sample()])
    with pytest.raises(RewardUnavailable):
        await RewardClient([address], IMPATIENT).score([make_sample()])
    async with scripted(honest, port=int(address.rpartition(":")[2]), version="2"):
        with pytest.raises(RewardContractError, match="serves another reward"):
            await client.score([make_sample()])


async def test_no_server_at_all_says_which_and_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    client = RewardClient(["127.0.0.1:1"], IMPATIENT)

    with pytest.raises(RewardUnavailable, match=r"127\.0\.0\.1:1.*trireme reward serve.*unavailable_budget_s \(0\.3\)"):
        await client.score([make_sample()])

    assert "scoring waits for the reward service (127.0.0.1:1)" in caplog.text


async def test_a_frozen_process_is_passed_over(tmp_path: Path) -> None:
    services = [RewardServiceConfig(name="exact_match")]
    children = [
        RewardServerChild(services, RewardServerConfig(port=0), log=tmp_path / f"{number}.log") for number in range(2)
    ]
    frozen = children[0].pid
    try:
        client = RewardClient([child.address for child in children], IMPATIENT.model_copy(update={"timeout_s": 0.3}))
        await client.describe()
        os.kill(frozen, signal.SIGSTOP)
        for index in range(6):
            (outcome,) = await client.score([make_sample(index)])
            assert outcome == Reward(value=1.0, components={"exact_match": 1.0})
    finally:
        os.kill(frozen, signal.SIGCONT)
        assert [child.stop() for child in children] == [0, 0]
