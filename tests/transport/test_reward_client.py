"""The reward client: what it sends, what it accepts, and what it never believes."""

import asyncio
import math

import grpc
import pytest

from services.contracts.errors import RewardContractError, UserError
from services.contracts.interfaces import RewardScorer
from services.contracts.records import Failure, FailureCode, Reward, RewardSample
from services.protos.reward.v1 import reward_pb2
from services.transport.reward_client import RewardClient
from services.transport.reward_settings import RewardClientConfig
from tests.reward_server.lies import LIES
from tests.reward_server.serving import (
    IMPATIENT,
    Connect,
    honest,
    make_sample,
    make_samples,
    response,
    results,
    scripted,
    until,
)


async def test_scores_come_back_in_the_order_of_the_samples(connect: Connect) -> None:
    async def backwards(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        reversed_results = [
            reward_pb2.Result(sample_id=sample.id, reward=reward_pb2.Reward(value=float(sample.completion)))
            for sample in reversed(request.samples)
        ]
        return response(request, reversed_results)

    async with scripted(backwards, maximum=9.0) as (address, _):
        client: RewardScorer = connect([address], IMPATIENT)
        outcomes = await client.score(make_samples(10))

    assert outcomes == [Reward(value=float(index)) for index in range(10)]


async def test_a_reward_arrives_with_its_components_and_steps(connect: Connect) -> None:
    async def rich(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        reward = reward_pb2.Reward(value=0.25, components={"style": -3.0})
        reward.steps.add(start=0, end=1, value=0.5)
        return response(request, [reward_pb2.Result(sample_id=request.samples[0].id, reward=reward)])

    async with scripted(rich) as (address, _):
        (outcome,) = await connect([address], IMPATIENT).score([make_sample()])

    assert isinstance(outcome, Reward)
    assert outcome.components == {"style": -3.0}
    assert [(step.start, step.end, step.value) for step in outcome.steps] == [(0, 1, 0.5)]


async def test_calls_respect_the_services_batch_size(connect: Connect) -> None:
    async with scripted(honest, max_batch_samples=4) as (address, service):
        await connect([address], IMPATIENT).score(make_samples(10))

    assert sorted(len(request.samples) for request in service.requests) == [2, 4, 4]


async def test_calls_respect_the_largest_request(connect: Connect) -> None:
    config = IMPATIENT.model_copy(update={"max_request_bytes": 2048})
    samples = [make_sample(index, completion="x" * 900) for index in range(5)]
    async with scripted(honest) as (address, service):
        await connect([address], config).score(samples)

    assert sum(len(request.samples) for request in service.requests) == 5
    assert len(service.requests) == 3
    assert all(request.ByteSize() <= 2048 for request in service.requests)


async def test_a_sample_that_is_too_large_fails_alone_and_is_never_sent(connect: Connect) -> None:
    config = IMPATIENT.model_copy(update={"max_request_bytes": 2048})
    async with scripted(honest) as (address, service):
        small, large = await connect([address], config).score([make_sample(0), make_sample(1, completion="x" * 3000)])

    assert small == Reward(value=0.5)
    assert isinstance(large, Failure)
    assert large.code is FailureCode.INVALID_SAMPLE
    assert "2048" in large.message
    assert sum(len(request.samples) for request in service.requests) == 1


async def test_what_protobuf_cannot_carry_fails_with_its_place(connect: Connect) -> None:
    samples = [
        make_sample(0, completion="\ud800"),
        make_sample(1, answer=2**60),
        make_sample(2, answer={"deep": [1.0, math.inf]}),
    ]
    async with scripted(honest) as (address, _):
        surrogate, integer, infinite = await connect([address], IMPATIENT).score(samples)

    assert isinstance(surrogate, Failure) and "U+D800" in surrogate.message
    assert isinstance(integer, Failure) and "reference.answer" in integer.message
    assert isinstance(infinite, Failure) and "reference.answer.deep[1]" in infinite.message


@pytest.mark.parametrize("needed", [True, False])
async def test_token_ids_travel_only_where_they_are_needed(connect: Connect, needed: bool) -> None:
    sample = RewardSample(id="a", completion="text", token_ids=(4, 5))
    async with scripted(honest, needs_token_ids=needed) as (address, service):
        await connect([address], IMPATIENT).score([sample])

    assert list(service.requests[0].samples[0].token_ids) == ([4, 5] if needed else [])


async def test_two_samples_with_one_id_are_refused(connect: Connect) -> None:
    with pytest.raises(ValueError, match="unique"):
        await connect(["127.0.0.1:1"], IMPATIENT).score([make_sample(0), make_sample(0)])


@pytest.mark.parametrize("name", LIES)
async def test_a_lying_server_is_named_and_never_believed(connect: Connect, name: str) -> None:
    lie, words = LIES[name]

    async def reply(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        return lie(request)

    async with scripted(reply) as (address, service):
        with pytest.raises(RewardContractError, match=f"{address} broke the reward contract.*{words}"):
            await connect([address], IMPATIENT).score([make_sample(0), make_sample(1)])

    assert len(service.requests) == 1


async def test_a_server_of_another_service_is_told_apart_from_one_that_is_down(connect: Connect) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with pytest.raises(RewardContractError, match=f"127.0.0.1:{port} does not implement trireme.reward.v1"):
        await connect([f"127.0.0.1:{port}"], IMPATIENT).describe()
    await server.stop(None)


@pytest.mark.parametrize("description", [{"name": "no good"}, {"minimum": 2.0}, {"minimum": math.nan}])
async def test_a_nonsensical_description_is_refused(connect: Connect, description: dict[str, object]) -> None:
    async with scripted(honest, **description) as (address, _):
        with pytest.raises(RewardContractError, match=f"{address} describes itself wrongly"):
            await connect([address], IMPATIENT).describe()


async def test_a_server_of_another_version_of_the_contract_is_told_with_both_versions(connect: Connect) -> None:
    async with scripted(honest, contract_version=2) as (address, _):
        with pytest.raises(RewardContractError, match=rf"{address} .* keeps version 2 .* version 1 is wanted"):
            await connect([address], IMPATIENT).describe()


async def test_servers_of_two_rewards_are_refused(connect: Connect) -> None:
    async with scripted(honest) as (one, _), scripted(honest, version="2") as (two, _):
        with pytest.raises(RewardContractError, match=f"({one}|{two}) serves another reward"):
            await connect([one, two], IMPATIENT).describe()


async def test_calls_go_round_the_servers(connect: Connect) -> None:
    async with scripted(honest) as (one, first), scripted(honest) as (two, second):
        client = connect([one, two], IMPATIENT)
        for index in range(6):
            await client.score([make_sample(index)])

    assert (len(first.requests), len(second.requests)) == (3, 3)


async def test_no_more_calls_are_in_flight_than_allowed(connect: Connect) -> None:
    most = running = 0

    async def slow(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return response(request, results(request))

    config = IMPATIENT.model_copy(update={"max_in_flight_calls": 3})
    async with scripted(slow, max_batch_samples=1) as (address, _):
        await connect([address], config).score(make_samples(12))

    assert most == 3


async def test_one_broken_call_ends_the_others_at_once(connect: Connect) -> None:
    async def lie_or_hang(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        if request.samples[0].completion == "0":
            return reward_pb2.ScoreResponse(request_id="another")
        await asyncio.Event().wait()
        raise AssertionError

    patient = IMPATIENT.model_copy(update={"timeout_s": 60.0})
    async with scripted(lie_or_hang, max_batch_samples=1) as (address, _):
        with pytest.raises(RewardContractError):
            await asyncio.wait_for(connect([address], patient).score(make_samples(3)), 5.0)


async def test_cancelling_a_score_cancels_its_calls(connect: Connect) -> None:
    cancelled: list[bool] = []
    never = asyncio.Event()

    async def hang(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        try:
            await never.wait()
        finally:
            cancelled.append(True)
        raise AssertionError

    async with scripted(hang) as (address, service):
        scoring = asyncio.create_task(connect([address], IMPATIENT).score([make_sample()]))
        await until(lambda: len(service.requests) == 1)
        scoring.cancel()
        await until(lambda: cancelled == [True])


def test_a_client_is_made_before_any_event_loop_runs() -> None:
    async def use(client: RewardClient) -> str:
        async with scripted(honest, port=int(address.rpartition(":")[2])):
            return (await client.describe()).name

    address = asyncio.run(free_address())
    client = RewardClient([address], IMPATIENT)
    assert asyncio.run(use(client)) == "scripted"


async def free_address() -> str:
    async with scripted(honest) as (address, _):
        return address


@pytest.mark.parametrize("address", ["127.0.0.1", "50051", ":50051", "127.0.0.1:http", "127.0.0.1:99999"])
def test_an_address_without_host_or_port_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="is not HOST:PORT"):
        RewardClient([address])


@pytest.mark.parametrize("address", ["10.0.0.1:50051", "rewards.internal:50051", "0.0.0.0:1"])
def test_plain_text_leaves_the_machine_only_when_allowed(address: str) -> None:
    with pytest.raises(UserError, match="allow_plaintext"):
        RewardClient([address])
    RewardClient([address], RewardClientConfig(allow_plaintext=True))


def test_loopback_needs_no_permission() -> None:
    RewardClient(["127.0.0.1:1", "localhost:2", "[::1]:3", "127.8.9.1:4"])


def test_a_client_without_addresses_is_refused() -> None:
    with pytest.raises(UserError, match="at least one"):
        RewardClient([])
