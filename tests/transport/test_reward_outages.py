"""The reward client against servers that fail, hang, die and come back."""

import asyncio
import time

import grpc
import pytest

from reward_server.config import RewardServerConfig
from reward_server.function import RewardFunction
from services.contracts.errors import RewardContractError, RewardUnavailable
from services.contracts.records import Failure, FailureCode, Reward
from services.protos.reward.v1 import reward_pb2
from tests.reward_server.serving import (
    IMPATIENT,
    Connect,
    StatusError,
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


async def test_a_sample_that_fails_for_now_is_tried_again_alone(connect: Connect) -> None:
    async def fail_first_sample_once(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        first, *rest = results(request)
        if len(request.samples) == 3:
            (first, *_) = failures(request)
        return response(request, [first, *rest])

    async with scripted(fail_first_sample_once) as (address, service):
        outcomes = await connect([address], IMPATIENT).score(make_samples(3))

    assert outcomes == [Reward(value=0.5)] * 3
    assert [len(request.samples) for request in service.requests] == [3, 1]
    assert len({request.request_id for request in service.requests}) == 2


async def test_a_sample_that_keeps_failing_ends_as_its_failure(connect: Connect) -> None:
    async def fail(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        return response(request, failures(request))

    async with scripted(fail) as (address, service):
        (outcome,) = await connect([address], IMPATIENT).score([make_sample()])

    assert outcome == Failure(code=FailureCode.TIMEOUT, message="scripted", retryable=True)
    assert len(service.requests) == IMPATIENT.max_attempts


async def test_a_sample_that_is_refused_for_good_is_not_tried_again(connect: Connect) -> None:
    async def refuse(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        return response(request, failures(request, "INVALID_SAMPLE", retryable=False))

    async with scripted(refuse) as (address, service):
        (outcome,) = await connect([address], IMPATIENT).score([make_sample()])

    assert isinstance(outcome, Failure) and outcome.code is FailureCode.INVALID_SAMPLE
    assert len(service.requests) == 1


async def test_a_service_that_says_it_is_out_is_waited_for_and_then_reported(connect: Connect) -> None:
    async def out(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        return response(request, failures(request, "UNAVAILABLE"))

    async with scripted(out) as (address, service):
        with pytest.raises(RewardUnavailable, match="scripted"):
            await connect([address], IMPATIENT).score([make_sample()])

    assert len(service.requests) > IMPATIENT.max_attempts


async def test_overload_is_waited_out(connect: Connect) -> None:
    overloaded = iter([True] * 5)

    async def reply(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        if next(overloaded, False):
            raise StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too busy")
        return response(request, results(request))

    async with scripted(reply) as (address, _):
        assert await connect([address], IMPATIENT).score([make_sample()]) == [Reward(value=0.5)]


async def test_a_server_that_crashes_on_a_call_is_tried_a_few_times_and_then_blamed(connect: Connect) -> None:
    async def crash(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        raise RuntimeError("bug in the server")

    async with scripted(crash) as (address, service):
        with pytest.raises(RewardContractError, match=r"3 attempts: .*UNKNOWN.*bug in the server"):
            await connect([address], IMPATIENT).score([make_sample()])

    assert len(service.requests) == 3


async def test_what_the_server_does_not_take_is_never_sent(connect: Connect) -> None:
    config = RewardServerConfig(port=0, max_message_bytes=2000, drain_s=0.0)
    samples = [make_sample(0, completion="1" * 900), make_sample(1, completion="1" * 900), make_sample(2)]
    async with serving(RewardFunction(lambda sample: 1.0), config) as address:
        outcomes = await connect([address], IMPATIENT).score([*samples, make_sample(3, completion="1" * 3000)])

    assert outcomes[:3] == [Reward(value=1.0)] * 3
    assert isinstance(outcomes[3], Failure) and outcomes[3].code is FailureCode.INVALID_SAMPLE
    assert "exceed the 2000 that the service takes; raise its max_message_bytes" in outcomes[3].message


async def test_a_limit_that_the_server_kept_silent_is_told_apart_from_overload(connect: Connect) -> None:
    async with scripted(honest, max_request_bytes=2000) as (address, service):
        with pytest.raises(RewardContractError, match=r"larger than max.*lower reward.max_request_bytes"):
            await connect([address], IMPATIENT).score([make_sample(completion="1" * 3000)])

    assert service.requests == []


async def test_a_call_to_a_hanging_server_ends_with_its_deadline(connect: Connect) -> None:
    never = asyncio.Event()

    async def hang(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        await never.wait()
        raise AssertionError

    config = IMPATIENT.model_copy(update={"timeout_s": 0.1})
    async with scripted(hang) as (address, _):
        started = time.monotonic()
        with pytest.raises(RewardUnavailable, match=rf"{address} did not answer Score within 0.1 s"):
            await connect([address], config).score([make_sample()])

    assert time.monotonic() - started < 5.0


async def test_a_hanging_server_is_passed_over_while_another_answers(connect: Connect) -> None:
    never = asyncio.Event()

    async def hang(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        await never.wait()
        raise AssertionError

    config = IMPATIENT.model_copy(update={"timeout_s": 0.1, "eject_after": 2, "eject_s": 60.0})
    async with scripted(hang) as (bad, hanging), scripted(honest) as (good, _):
        client = connect([bad, good], config)
        for index in range(20):
            assert await client.score([make_sample(index)]) == [Reward(value=0.5)]

    assert len(hanging.requests) == 2


async def test_a_dead_server_is_failed_over_at_once(connect: Connect) -> None:
    async with scripted(honest) as (good, _):
        async with scripted(honest) as (dying, _):
            client = connect([dying, good], IMPATIENT)
            await client.score(make_samples(2))
        started = time.monotonic()
        for index in range(10):
            assert await client.score([make_sample(index)]) == [Reward(value=0.5)]

    assert time.monotonic() - started < 1.0


async def test_a_server_that_comes_back_is_used_again(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    async with scripted(honest) as (address, _):
        client = connect([address], IMPATIENT.model_copy(update={"unavailable_budget_s": 20.0}))
        await client.score([make_sample()])
    waiting = asyncio.create_task(client.score([make_sample()]))
    await until(lambda: "scoring waits" in caplog.text)
    async with scripted(honest, port=int(address.rpartition(":")[2])):
        assert await asyncio.wait_for(waiting, 5.0) == [Reward(value=0.5)]


async def test_a_server_that_comes_back_as_another_reward_is_refused(connect: Connect) -> None:
    async with scripted(honest) as (address, _):
        client = connect([address], IMPATIENT.model_copy(update={"unavailable_budget_s": 20.0}))
        await client.score([make_sample()])
    with pytest.raises(RewardUnavailable):
        await connect([address], IMPATIENT).score([make_sample()])
    async with scripted(honest, port=int(address.rpartition(":")[2]), version="2"):
        with pytest.raises(RewardContractError, match="serves another reward"):
            await client.score([make_sample()])


async def test_no_server_at_all_says_which_and_what_to_do(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    client = connect(["127.0.0.1:1"], IMPATIENT)

    with pytest.raises(RewardUnavailable, match=r"127\.0\.0\.1:1.*trireme reward serve.*unavailable_budget_s \(0\.3\)"):
        await client.score([make_sample()])

    assert "scoring waits for the reward service (127.0.0.1:1)" in caplog.text


async def test_a_fault_that_lasts_is_told_in_full_once(
    connect: Connect, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.transport.reward_client.WARN_EVERY_S", 0.0)
    with pytest.raises(RewardUnavailable) as raised:
        await connect(["127.0.0.1:1"], IMPATIENT).describe(budget_s=0.3)

    told = [record.message for record in caplog.records if "scoring waits" in record.message]
    assert "Connection refused" in told[0]
    assert len(told) > 1 and {line.rpartition(": ")[2] for line in told[1:]} == {"as before"}
    assert "unavailable_budget_s" not in str(raised.value)  # It is not what this wait is bounded by.
