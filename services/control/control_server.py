"""The gRPC server through which a live run is asked for its status and for changes. The only file here that knows gRPC.

It must not know how the run does what it is asked: that is behind `RunControl`. Invariants: nothing is answered without
the run's token; in plain text it listens on this machine alone; every request has a deadline.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from services.contracts.errors import TriremeError, UserError
from services.contracts.interfaces import RunControl
from services.control.control_settings import ControlConfig
from services.protos.control.v1 import control_pb2, control_pb2_grpc
from services.transport.addresses import split_address
from services.transport.control_codec import encode_status
from services.transport.control_file import ControlFile, announce
from services.transport.grpc_security import TokenCheck, server_credentials
from services.transport.secret_files import server_material

logger = logging.getLogger(__name__)

FLUSH_S = 1.0
MAX_CALLS = 16
MAX_REQUEST_BYTES = 64 << 10
MAX_CHECKPOINT_S = 86_400.0
MAX_ERROR_BYTES = 2_000  # a status travels in HTTP headers, which may hold 8 KiB with each byte written as three
Context = Any  # Any: grpc.aio.ServicerContext, which has no types


@asynccontextmanager
async def open_control_server(control: RunControl, config: ControlConfig, folder: Path) -> AsyncIterator[ControlFile]:
    """Answer the operator for as long as the block lasts, and say where in `control.json` in the run's folder.

    Raises:
        UserError: when the address cannot be listened on, the certificate not be used, or the file not be written.
    """
    token = secrets.token_urlsafe(32)
    server = grpc.aio.server(
        interceptors=[TokenCheck(lambda: [token])],
        options=[("grpc.max_receive_message_length", MAX_REQUEST_BYTES), ("grpc.so_reuseport", 0)],
        maximum_concurrent_rpcs=MAX_CALLS,
    )
    control_pb2_grpc.add_ControlServiceServicer_to_server(ControlServicer(control, config.timeout_s), server)
    address, public_address = _listen(server, config)
    entry = ControlFile(address=address, public_address=public_address, token=token)
    await server.start()
    try:
        with announce(folder, entry):
            yield entry
    finally:
        await server.stop(FLUSH_S)


class ControlServicer(control_pb2_grpc.ControlServiceServicer):  # type: ignore[misc]  # generated, without types
    """The methods of the contract."""

    def __init__(self, control: RunControl, timeout_s: float) -> None:
        self._control = control
        self._timeout_s = timeout_s

    async def Status(self, request: control_pb2.StatusRequest, context: Context) -> control_pb2.StatusResponse:  # noqa: N802 - named by the contract
        async with self._telling(context):
            return encode_status(self._control.status())

    async def Scale(self, request: control_pb2.ScaleRequest, context: Context) -> control_pb2.ScaleResponse:  # noqa: N802 - named by the contract
        async with self._telling(context):
            await self._control.scale(request.num_workers)
        return control_pb2.ScaleResponse()

    async def Pause(self, request: control_pb2.PauseRequest, context: Context) -> control_pb2.PauseResponse:  # noqa: N802 - named by the contract
        async with self._telling(context):
            await self._control.pause()
        return control_pb2.PauseResponse()

    async def Resume(self, request: control_pb2.ResumeRequest, context: Context) -> control_pb2.ResumeResponse:  # noqa: N802 - named by the contract
        async with self._telling(context):
            await self._control.resume()
        return control_pb2.ResumeResponse()

    async def Checkpoint(  # noqa: N802 - named by the contract
        self, request: control_pb2.CheckpointRequest, context: Context
    ) -> control_pb2.CheckpointResponse:
        if not 0 < request.timeout_s <= MAX_CHECKPOINT_S:
            text = f"a checkpoint within {request.timeout_s:g} s cannot be; give up to {MAX_CHECKPOINT_S:g} s"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        async with self._telling(context, extra_s=request.timeout_s):
            path = await self._control.checkpoint(timeout_s=request.timeout_s)
        return control_pb2.CheckpointResponse(path=str(path))

    async def Drain(self, request: control_pb2.DrainRequest, context: Context) -> control_pb2.DrainResponse:  # noqa: N802 - named by the contract
        async with self._telling(context):
            await self._control.drain()
        return control_pb2.DrainResponse()

    @asynccontextmanager
    async def _telling(self, context: Context, *, extra_s: float = 0.0) -> AsyncIterator[None]:
        """Tell the caller what went wrong within the block, and end the block when its time is up."""
        timeout_s = self._timeout_s + extra_s
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except UserError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _cut(str(error)))
        except TriremeError as error:
            await context.abort(grpc.StatusCode.ABORTED, _cut(str(error)))
        except TimeoutError:
            text = f"the run did not take the request up within {timeout_s:g} s (control.timeout_s); look at its log"
            await context.abort(grpc.StatusCode.ABORTED, text)


def _listen(server: Any, config: ControlConfig) -> tuple[str, str]:  # Any: grpc.aio.Server, which has no types
    """Add the ports: the address for this machine, in plain text, and the one for others, behind TLS or empty."""
    material = server_material(config, section="control.")
    if material is None:
        return _bind(config.address, server.add_insecure_port), ""
    credentials = server_credentials(material)
    public = _bind(config.address, lambda target: server.add_secure_port(target, credentials))
    return _bind("127.0.0.1:0", server.add_insecure_port), public


def _bind(address: str, add_port: Callable[[str], int]) -> str:
    host, _ = split_address(address, what="control.address")
    try:
        return f"{host}:{add_port(address)}"
    except RuntimeError as error:
        raise UserError(
            f"cannot listen on control.address {address}: the port is taken, or the host is not this machine's; "
            "port 0 takes a free one"
        ) from error


def _cut(text: str) -> str:
    return text.encode(errors="replace")[:MAX_ERROR_BYTES].decode(errors="ignore")
