"""Servers for tests: a real one in this process, and ones that answer whatever a test tells them to."""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from reward_server.config import READY_PREFIX, RewardServerConfig
from reward_server.function import RewardFunction
from reward_server.scorer import FunctionScorer, Scorer
from reward_server.server import RewardServer
from services.contracts.records import Json, RewardSample
from services.protos.reward.v1 import reward_pb2, reward_pb2_grpc
from services.transport.reward_client import RewardClient
from services.transport.reward_settings import RewardClientConfig

Connect = Callable[..., RewardClient]
"""Makes a client, which is closed when the test ends: the arguments are those of `RewardClient`."""
Reply = Callable[[reward_pb2.ScoreRequest], Awaitable[reward_pb2.ScoreResponse]]

IMPATIENT = RewardClientConfig(
    timeout_s=5.0,
    max_attempts=3,
    backoff_initial_s=0.01,
    backoff_max_s=0.02,
    unavailable_budget_s=0.3,
)


def make_sample(index: int = 0, *, completion: str = "7", **reference: Json) -> RewardSample:
    return RewardSample(id=f"0-{index}/0", completion=completion, reference=reference or {"answer": "7"})


def make_samples(count: int) -> list[RewardSample]:
    return [make_sample(index, completion=str(index)) for index in range(count)]


def completion_as_number(sample: RewardSample) -> float:
    return float(sample.completion)


async def until(condition: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    """Wait until `condition` holds; fail the test when it does not within the time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not reached within {timeout_s} s"
        await asyncio.sleep(0.005)


@contextmanager
def listening(command: Sequence[str], **how: Any) -> Iterator[tuple["subprocess.Popen[str]", str]]:  # Any: Popen's own
    """A process that prints where it listens; gives itself and the address."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **how)
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line.startswith(READY_PREFIX), line
        yield child, line.removeprefix(READY_PREFIX).strip()
    finally:
        child.kill()
        child.communicate()


async def connecting() -> AsyncIterator[Connect]:
    """What a fixture yields to a test that makes clients."""
    clients: list[RewardClient] = []

    def connect(*arguments: Any, **named: Any) -> RewardClient:  # Any: whatever a client takes
        clients.append(RewardClient(*arguments, **named))
        return clients[-1]

    yield connect
    for client in clients:
        await client.close()


@asynccontextmanager
async def serving(reward: RewardFunction | Scorer, config: RewardServerConfig | None = None) -> AsyncIterator[str]:
    """A real server in this process; gives its address."""
    config = config or RewardServerConfig(port=0, drain_s=0.0)
    if isinstance(reward, RewardFunction):
        reward = FunctionScorer(reward, timeout_s=config.timeout_s, num_threads=config.num_threads)
    server = RewardServer(reward, config)
    address = await server.start()
    try:
        yield address
    finally:
        await server.drain()


class ScriptedService(reward_pb2_grpc.RewardServiceServicer):
    """Describes itself and replies as it is told, and remembers the requests."""

    def __init__(self, reply: Reply, description: reward_pb2.DescribeResponse) -> None:
        self.requests: list[reward_pb2.ScoreRequest] = []
        self._reply = reply
        self._description = description

    async def Describe(self, request: object, context: object) -> reward_pb2.DescribeResponse:  # noqa: N802 - gRPC's
        return self._description

    async def Score(self, request: reward_pb2.ScoreRequest, context: grpc.aio.ServicerContext) -> object:  # noqa: N802
        self.requests.append(request)
        try:
            return await self._reply(request)
        except StatusError as error:
            await context.abort(error.code, str(error))


class StatusError(Exception):
    """Makes a scripted service answer with a gRPC status."""

    def __init__(self, code: grpc.StatusCode, text: str = "scripted") -> None:
        super().__init__(text)
        self.code = code


@asynccontextmanager
async def scripted(
    reply: Reply,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    max_request_bytes: int = -1,
    compression: grpc.Compression = grpc.Compression.NoCompression,
    health_servicer: health.aio.HealthServicer | None = None,
    **description: object,
) -> AsyncIterator[tuple[str, ScriptedService]]:
    """A service that replies as told; gives its address and itself. It keeps silent about `max_request_bytes`."""
    message = reward_pb2.DescribeResponse(**{"name": "scripted", "minimum": 0.0, "maximum": 1.0} | description)
    service = ScriptedService(reply, message)
    options = [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", max_request_bytes),
        ("grpc.max_send_message_length", -1),
    ]
    server = grpc.aio.server(options=options, compression=compression)
    reward_pb2_grpc.add_RewardServiceServicer_to_server(service, server)
    if health_servicer is not None:
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    port = server.add_insecure_port(f"{host}:{port}")
    await server.start()
    try:
        yield f"{host}:{port}", service
    finally:
        await server.stop(None)


def results(request: reward_pb2.ScoreRequest, value: float = 0.5) -> list[reward_pb2.Result]:
    """A right result for each sample."""
    reward = reward_pb2.Reward(value=value)
    return [reward_pb2.Result(sample_id=sample.id, reward=reward) for sample in request.samples]


def failures(
    request: reward_pb2.ScoreRequest, code: str = "TIMEOUT", *, retryable: bool = True
) -> list[reward_pb2.Result]:
    """A failure for each sample."""
    failure = reward_pb2.Failure(code=f"FAILURE_CODE_{code}", message="scripted", retryable=retryable)
    return [reward_pb2.Result(sample_id=sample.id, failure=failure) for sample in request.samples]


def response(request: reward_pb2.ScoreRequest, results: list[reward_pb2.Result]) -> reward_pb2.ScoreResponse:
    return reward_pb2.ScoreResponse(request_id=request.request_id, results=results)


async def honest(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
    return response(request, results(request))
