"""What services a gRPC server has, as it says itself by server reflection.

It must not know which service is looked for. Invariant: it ends within its deadline; a server without reflection ends
in grpc's own error.
"""

from typing import Any

from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc


async def list_services(channel: Any, *, timeout_s: float, metadata: Any = None) -> list[str]:  # Any: grpc has no types
    """The full names of the services. Raises `grpc.aio.AioRpcError`."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async for response in stub.ServerReflectionInfo(iter([request]), timeout=timeout_s, metadata=metadata):
        return [service.name for service in response.list_services_response.service]
    return []
