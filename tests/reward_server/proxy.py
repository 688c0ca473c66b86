"""A TCP proxy in this process that may hold back, slow down or cut what a server answers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

Mode = Literal["pass", "hold", "drip", "cut"]

DRIP_BYTES = 1
DRIP_PAUSE_S = 0.02
CUT_AFTER_BYTES = 20


class Proxy:
    """Passes everything on, until `mode` says what becomes of the server's bytes; what it held back it never sends.

    `hold` swallows them, `drip` sends them byte by byte, `cut` closes the connection within a message.
    """

    def __init__(self, target: str) -> None:
        self.mode: Mode = "pass"
        self.address = ""
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.close()
            return
        for source, sink, answers in ((reader, to_server, False), (from_server, writer, True)):
            task = asyncio.create_task(self._relay(source, sink, answers=answers))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
        was_disturbed = False
        try:
            while data := await source.read(1 << 16):
                mode = self.mode if answers else "pass"
                was_disturbed = was_disturbed or mode != "pass"
                if was_disturbed and mode == "pass":
                    return  # The stream has holes by now; only a new connection mends that.
                await self._send(data, sink, mode)
                if mode == "cut":
                    return
        except OSError:
            pass
        finally:
            sink.close()

    async def _send(self, data: bytes, sink: asyncio.StreamWriter, mode: Mode) -> None:
        match mode:
            case "pass":
                sink.write(data)
            case "cut":
                sink.write(data[:CUT_AFTER_BYTES])
            case "drip":
                for start in range(0, len(data), DRIP_BYTES):
                    sink.write(data[start : start + DRIP_BYTES])
                    await asyncio.sleep(DRIP_PAUSE_S)
        await sink.drain()


@asynccontextmanager
async def proxied(target: str) -> AsyncIterator[Proxy]:
    """A proxy in front of `target`, HOST:PORT."""
    proxy = Proxy(target)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    proxy.address = f"{host}:{port}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.stop()
