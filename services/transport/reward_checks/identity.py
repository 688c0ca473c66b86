"""Checks of what stands around the scores: the server answers, describes itself, tells its health, reflects.

They must not score. Invariant: `describes_itself` leaves in the session what the later checks hold the answers against.
"""

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.protos.reward.v1 import reward_pb2, reward_pb2_grpc
from services.transport.reflection import list_services
from services.transport.reward_checks.session import Session, Status, Violation, Warn
from services.transport.reward_codec import SERVICE_NAME, decode_description
from services.transport.reward_validation import fault_in_description, range_text


async def reachable(session: Session) -> str:
    try:
        await asyncio.wait_for(session.channel.channel_ready(), session.timeout_s)
    except TimeoutError:
        fault = await session.find_fault() if session.find_fault else None
        if fault is not None:
            raise Violation(f"{session.address} {fault}") from None
        raise Violation(f"nothing that speaks gRPC answers at {session.address}; is it started, and there?") from None
    return f"a gRPC server answers at {session.address}"


async def describes_itself(session: Session) -> str:
    stub = reward_pb2_grpc.RewardServiceStub(session.channel)
    response = await stub.Describe(reward_pb2.DescribeRequest(), timeout=session.timeout_s)
    session.description = decode_description(response)
    fault = fault_in_description(session.description)
    if fault is not None:
        raise Violation(fault)
    found = session.description
    needs = "needs token ids" if found.needs_token_ids else "needs no token ids"
    steps = {True: "may give rewards for steps", False: "gives no rewards for steps", None: "says nothing of steps"}
    return f"{found.name}, version {found.version}, range {range_text(found)}, {needs}, {steps[found.gives_steps]}"


async def tells_its_health(session: Session) -> str:
    stub = health_pb2_grpc.HealthStub(session.channel)
    try:
        response = await stub.Check(health_pb2.HealthCheckRequest(), timeout=session.timeout_s)
    except grpc.aio.AioRpcError as error:
        if error.code() is not Status.UNIMPLEMENTED:
            raise
        raise Violation("there is no grpc.health.v1.Health; add the health service of your gRPC library") from error
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    if name != "SERVING":
        raise Violation(f"grpc.health.v1 says {name}, while the service answers; set SERVING once it can score")
    return "grpc.health.v1 says SERVING"


async def reflects(session: Session) -> str:
    try:
        names = await list_services(session.channel, timeout_s=session.timeout_s)
    except grpc.aio.AioRpcError as error:
        raise Warn(f"no server reflection ({error.code().name}); tools such as grpcurl will need the .proto") from error
    if SERVICE_NAME not in names:
        raise Warn(f"server reflection does not list {SERVICE_NAME}")
    return f"lists {len(names)} services"
