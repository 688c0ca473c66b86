"""The servers that `benchmarks.reward_calls` compares: python -m benchmarks.reward_servers NAME.

Each prints its address as the last word of its first line. `null` is a reward server whose reward does nothing; `echo`
is the least that grpc.aio does: the same method, returning the request's bytes; `http` is the usual shape of a reward
server elsewhere: FastAPI and JSON, one sample a call.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from reward_server import RewardSample, serve
from services.transport.reward_codec import SERVICE_NAME


class JsonSample(BaseModel):
    """A sample as JSON."""

    id: str
    prompt: str
    completion: str
    reference: dict[str, Any]  # Any: whatever JSON holds


class JsonReward(BaseModel):
    """The answer to one."""

    id: str
    reward: float


def serve_null() -> None:
    async def score(sample: RewardSample) -> float:
        return 0.0

    serve(score, port=0)


def serve_echo() -> None:
    async def echo(request: bytes, context: object) -> bytes:
        return request

    async def run() -> None:
        handlers = {"Score": grpc.unary_unary_rpc_method_handler(echo)}
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"echo on 127.0.0.1:{port}", flush=True)
        await server.wait_for_termination()

    asyncio.run(run())


def serve_http() -> None:
    app = FastAPI()

    @app.post("/score")
    async def score(sample: JsonSample) -> JsonReward:
        return JsonReward(id=sample.id, reward=0.0)

    listening = socket.create_server(("127.0.0.1", 0))
    print(f"http on 127.0.0.1:{listening.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


SERVERS: Mapping[str, Callable[[], None]] = {"null": serve_null, "echo": serve_echo, "http": serve_http}

if __name__ == "__main__":
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    SERVERS[sys.argv[1]]()
