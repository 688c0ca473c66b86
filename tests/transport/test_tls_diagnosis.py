"""TLS is blamed only where it is the reason: not for a server that is down, silent, cut off or about to be renewed."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from services.transport.security import ClientSecurity
from services.transport.tls_diagnosis import find_tls_fault
from tests.certificates import Authority

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def hang_up_when_asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.transport.abort()


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


@pytest.mark.parametrize("handle", [hang_up, hang_up_when_asked, say_nothing])
@pytest.mark.parametrize("with_tls", [True, False])
async def test_a_server_that_does_not_come_to_a_handshake_is_not_explained(
    tmp_path: Path, handle: Handle, with_tls: bool
) -> None:
    security = ClientSecurity(tls_ca=Authority(tmp_path).file) if with_tls else ClientSecurity()
    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert await asyncio.wait_for(find_tls_fault(address, security, timeout_s=0.2), 5.0) is None


async def test_nobody_there_and_files_that_are_just_replaced_are_not_explained(tmp_path: Path) -> None:
    assert await find_tls_fault("127.0.0.1:1", ClientSecurity(tls=True)) is None
    assert await find_tls_fault("127.0.0.1:1", ClientSecurity(tls_ca=tmp_path / "gone")) is None
