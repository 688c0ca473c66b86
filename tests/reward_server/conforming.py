"""A reward service that keeps the contract, for tests that break one thing of it and look who notices."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.protos.reward.v1 import reward_pb2, reward_pb2_grpc
from services.transport.reward_codec import SERVICE_NAME
from tests.reward_server.serving import response, results, until

MAX_SAMPLES = 8
Context = Any  # Any: grpc.aio.ServicerContext, which has no types
Request = reward_pb2.ScoreRequest
Response = reward_pb2.ScoreResponse


class Conforming(reward_pb2_grpc.RewardServiceServicer):
    """Scores everything 0.5. A test overrides what it breaks."""

    status = health_pb2.HealthCheckResponse.SERVING
    reflected: tuple[str, ...] = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
    max_receive_bytes = 4 << 20

    def __init__(self) -> None:
        self.draining = False
        self.under_way: set[object] = set()

    async def Describe(self, request: object, context: Context) -> reward_pb2.DescribeResponse:  # noqa: N802
        return reward_pb2.DescribeResponse(name="fair", minimum=0.0, maximum=1.0, max_batch_samples=MAX_SAMPLES)

    async def Score(self, request: Request, context: Context) -> Response:  # noqa: N802
        if self.draining:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "shutting down")
        await self.refuse(request, context)
        self.under_way.add(context)
        try:
            return await self.answer(request)
        finally:
            self.under_way.discard(context)

    async def refuse(self, request: Request, context: Context) -> None:
        ids = [sample.id for sample in request.samples]
        if len(ids) > MAX_SAMPLES or len(set(ids)) < len(ids):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "too many, or two with one id")

    async def answer(self, request: Request) -> Response:
        return response(request, results(request))

    async def drain(self, server: Any, healths: Any) -> None:  # Any: grpc's, which have no types
        self.draining = True
        await healths.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        await until(lambda: not self.under_way)
        await server.stop(0.2)


@asynccontextmanager
async def running(service: Conforming) -> AsyncIterator[tuple[str, Any]]:
    """The service on a port; gives the address and what starts its drain."""
    server = grpc.aio.server(
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", service.max_receive_bytes)]
    )
    reward_pb2_grpc.add_RewardServiceServicer_to_server(service, server)
    healths = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    reflection.enable_server_reflection(service.reflected, server)
    await healths.set("", service.status)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    draining: list[asyncio.Task[None]] = []

    async def stop() -> None:
        draining.append(asyncio.create_task(service.drain(server, healths)))

    try:
        yield f"127.0.0.1:{port}", stop
    finally:
        try:
            await asyncio.gather(*draining)
        finally:
            await server.stop(None)
