"""A run against reward servers that lie, stall, cut or are others: the real controller and client, fakes for the rest.

Each server is honest for the first step, or not at all. A lie stops the run; a fault of the connection holds it until
the server is well again, or the time for that is spent. What was trained has the honest server's rewards, no others.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import reflection

from reward_server.config import RewardServerConfig
from reward_server.function import RewardFunction
from services.contracts.errors import RewardContractError, RewardUnavailable, SampleNotScorable, TriremeError, UserError
from services.protos.reward.v1 import reward_pb2
from services.transport.reward_client import RewardClient
from tests.certificates import Authority
from tests.control.test_controller import Setting
from tests.fakes import FakeLearner
from tests.reward_server.lies import LIES, Lie
from tests.reward_server.proxy import Mode, Proxy, proxied
from tests.reward_server.serving import (
    IMPATIENT,
    Connect,
    Reply,
    failures,
    honest,
    response,
    results,
    scripted,
    serving,
    until,
)

HONEST_VALUE = 0.5
PROMPTS_OF_A_STEP = 4
STALLED: tuple[Mode, ...] = ("hold", "drip", "cut")
QUICK = IMPATIENT.model_copy(update={"timeout_s": 0.4, "eject_s": 0.1, "unavailable_budget_s": 30.0})


def honest_for_a_step(learner: FakeLearner, afterwards: Lie) -> Reply:
    async def reply(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        return afterwards(request) if learner.batches else response(request, results(request))

    return reply


def trained_values(learner: FakeLearner) -> set[float]:
    return {reward.value for batch in learner.batches for group in batch for reward in group.rewards}


async def stopped(
    client: RewardClient, error: type[TriremeError], words: str, *, learner: FakeLearner | None = None
) -> None:
    """Run until `error` ends it: after one honest step where the learner is given, before the first where it is not."""
    num_steps = 0 if learner is None else 1
    learner = learner or FakeLearner()
    setting = Setting(rewards=client, learner=learner)  # type: ignore[arg-type]  # the real client instead of a fake
    with pytest.raises(error, match=words):
        await asyncio.wait_for(setting.run(3), 60.0)
    assert len(learner.batches) == num_steps
    assert trained_values(learner) <= {HONEST_VALUE}


async def held(
    client: RewardClient,
    learner: FakeLearner,
    caplog: pytest.LogCaptureFixture,
    *,
    is_broken: Callable[[], bool] = lambda: True,
    mend: Callable[[], None],
) -> None:
    """Run until it waits for the service and trains nothing more, mend that, and see the run to its end."""
    setting = Setting(rewards=client, learner=learner)  # type: ignore[arg-type]  # the real client instead of a fake
    running = asyncio.create_task(setting.run(3))
    await until(lambda: is_broken() and "scoring waits for the reward service" in caplog.text)
    assert len(learner.batches) < 2
    mend()
    await asyncio.wait_for(running, 60.0)
    trained = [event["prompt"] for event in setting.named("trained")]
    assert len(trained) == len(set(trained)) == 3 * PROMPTS_OF_A_STEP
    assert trained_values(learner) == {HONEST_VALUE}


@pytest.mark.parametrize("name", LIES)
async def test_a_lie_stops_the_run_and_trains_nothing(connect: Connect, name: str) -> None:
    lie, words = LIES[name]
    learner = FakeLearner()
    async with scripted(honest_for_a_step(learner, lie)) as (address, _):
        words = f"^{address} broke .*{words}"
        await stopped(connect([address], IMPATIENT), RewardContractError, words, learner=learner)


async def test_a_server_that_only_fails_samples_stops_the_run_after_its_attempts(connect: Connect) -> None:
    learner = FakeLearner()
    reply = honest_for_a_step(learner, lambda request: response(request, failures(request)))
    async with scripted(reply) as (address, _):
        client = connect([address], IMPATIENT)
        await stopped(client, SampleNotScorable, r"scripted \(timeout\)", learner=learner)


@pytest.mark.parametrize(
    ("num_bytes", "compression"), [(100_000_000, grpc.Compression.NoCompression), (65_000_000, grpc.Compression.Gzip)]
)
async def test_an_answer_of_many_megabytes_stops_the_run(
    connect: Connect, num_bytes: int, compression: grpc.Compression
) -> None:
    texts = iter(["x" * num_bytes])

    def huge(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        answers = results(request)
        for text in itertools.islice(texts, 1):
            answers[0].failure.message = text
        return response(request, answers)

    learner = FakeLearner()
    config = IMPATIENT.model_copy(update={"timeout_s": 20.0})
    async with scripted(honest_for_a_step(learner, huge), compression=compression) as (address, _):
        words = rf"^{address} answered Score with more than reward.max_response_bytes \(64000000\)"
        await stopped(connect([address], config), RewardContractError, words, learner=learner)


async def test_bytes_that_are_no_message_stop_the_run(connect: Connect) -> None:
    async def garbage(request: bytes, context: object) -> bytes:
        return b"\xff" * 100

    async def describe(request: bytes, context: object) -> bytes:
        return reward_pb2.DescribeResponse(name="garbage").SerializeToString()

    methods = {"Describe": describe, "Score": garbage}
    async with generic("trireme.reward.v1.RewardService", methods) as address:
        words = f"^{address} answered Score with bytes that are no ScoreResponse"
        await stopped(connect([address], IMPATIENT), RewardContractError, words)


@pytest.mark.parametrize("mode", STALLED)
async def test_a_connection_that_stalls_or_breaks_holds_the_run_until_it_is_mended(
    connect: Connect, caplog: pytest.LogCaptureFixture, mode: Mode
) -> None:
    learner = FakeLearner()
    proxies: list[Proxy] = []
    is_stalled = iter([False])

    def stall(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        if next(is_stalled, True) is False:
            proxies[0].mode = mode
        return response(request, results(request))

    def mend() -> None:
        proxies[0].mode = "pass"

    async with scripted(honest_for_a_step(learner, stall)) as (address, _), proxied(address) as proxy:
        proxies.append(proxy)
        client = connect([proxy.address], QUICK)
        await held(client, learner, caplog, is_broken=lambda: proxy.mode == mode, mend=mend)


@pytest.mark.parametrize("mode", STALLED)
async def test_a_connection_that_is_never_mended_stops_the_run(connect: Connect, mode: Mode) -> None:
    config = QUICK.model_copy(update={"unavailable_budget_s": 0.5})
    async with scripted(honest) as (address, _), proxied(address) as proxy:
        client = connect([proxy.address], config)
        await client.describe()
        proxy.mode = mode
        words = rf"no answer from the reward service \({proxy.address}\).*unavailable_budget_s \(0.5\)"
        await stopped(client, RewardUnavailable, words)


@asynccontextmanager
async def generic(service: str, methods: dict[str, Callable[..., object]]) -> AsyncIterator[str]:
    """A gRPC server with a service of any name, whose methods take and return bytes; with reflection."""
    server = grpc.aio.server()
    handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    reflection.enable_server_reflection((service, reflection.SERVICE_NAME), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest.mark.parametrize("service", ["trireme.reward.v2.RewardService", "shop.Basket"])
async def test_another_service_or_version_is_told_with_what_was_found_and_what_is_wanted(
    connect: Connect, service: str
) -> None:
    async with generic(service, {}) as address:
        words = rf"^{address} does not .*; it has {service}, and trireme.reward.v1.RewardService is wanted"
        await stopped(connect([address], IMPATIENT), RewardContractError, words)


async def test_another_version_of_the_contract_within_the_service_is_told(connect: Connect) -> None:
    async with scripted(honest, contract_version=3) as (address, _):
        words = rf"^{address} .* keeps version 3 of the reward contract, and version 1 is wanted"
        await stopped(connect([address], IMPATIENT), RewardContractError, words)


@pytest.mark.parametrize("banner", [b"SSH-2.0-OpenSSH_9.9\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_what_does_not_speak_grpc_at_all_is_no_answer(connect: Connect, banner: bytes) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(banner)
        await writer.drain()
        writer.close()

    config = QUICK.model_copy(update={"unavailable_budget_s": 0.3})
    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await stopped(connect([address], config), RewardUnavailable, f"{address} answered Describe")


async def test_a_wrong_certificate_is_refused_before_the_run_and_held_within_it(
    connect: Connect, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    ours, stranger = Authority(tmp_path / "ours"), Authority(tmp_path / "stranger")
    certificate, key = ours.sign(tmp_path / "server", names=["127.0.0.1"])
    config = QUICK.model_copy(update={"tls_ca": ours.file, "timeout_s": 2.0})
    files = {"tls_certificate": certificate, "tls_key": key}
    reward = RewardFunction(lambda sample: HONEST_VALUE)
    async with serving(reward, RewardServerConfig(port=0, drain_s=0.0, **files)) as address:
        client = connect([address], config)
        await client.describe()
    stranger.sign(tmp_path / "server", names=["127.0.0.1"])
    port = int(address.rpartition(":")[2])
    async with serving(reward, RewardServerConfig(port=port, drain_s=0.0, **files)):
        await stopped(connect([address], config), UserError, "none that reward.tls_ca vouches for")

        def mend() -> None:
            ours.sign(tmp_path / "server", names=["127.0.0.1"])

        await held(client, FakeLearner(), caplog, mend=mend)
