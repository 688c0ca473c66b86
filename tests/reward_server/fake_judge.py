"""An endpoint that speaks OpenAI's chat protocol, with a mind and with faults of the test's choosing."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from reward_server.judges.config import JudgeConfig

MODEL = "fake-judge"
Body = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An HTTP response. With `hang` nothing is ever sent."""

    status: int = 200
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: bool = False


Said = Mapping[str, object] | str | Answer
Mind = Callable[[Body], Said]


class FakeEndpoint:
    """Answers chat completions with what `mind` makes of a request: a verdict, a text, or a whole response."""

    def __init__(self, mind: Mind) -> None:
        self.mind = mind
        self.bodies: list[Body] = []
        self.arrivals: list[float] = []
        self.headers: list[str] = []
        self.base_url = ""
        self.num_at_once = 0
        self.most_at_once = 0

    def config(self, **settings: object) -> JudgeConfig:
        """Settings of a judge that asks here."""
        values = {"base_url": self.base_url, "model": MODEL, "explain": False, "max_attempts": 3, "timeout_s": 5.0}
        return JudgeConfig.model_validate(values | settings)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.headers.append(head)
            length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
            content = await reader.readexactly(int(length[1])) if length else b""
            answer = await self._answer(head, content)
            if answer.hang:
                await reader.read()
            writer.write(encode(answer))
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # The judge gave up.
        finally:
            writer.close()

    async def _answer(self, head: str, content: bytes) -> Answer:
        if head.startswith("GET /v1/models"):
            return Answer(content=json.dumps({"data": [{"id": MODEL}]}).encode())
        arrived = time.monotonic()
        self.num_at_once += 1
        self.most_at_once = max(self.most_at_once, self.num_at_once)
        await asyncio.sleep(0.01)  # Long enough for others to arrive.
        self.num_at_once -= 1
        body = json.loads(content)
        self.arrivals.append(arrived)
        self.bodies.append(body)
        said = self.mind(body)
        return said if isinstance(said, Answer) else completion(said if isinstance(said, str) else json.dumps(said))


@asynccontextmanager
async def fake_endpoint(mind: Mind, *, port: int = 0) -> AsyncIterator[FakeEndpoint]:
    """A running endpoint."""
    endpoint = FakeEndpoint(mind)
    server = await asyncio.start_server(endpoint.serve, "127.0.0.1", port)
    endpoint.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield endpoint
    finally:
        server.close()


def completion(text: str, *, finish_reason: str = "stop", input_tokens: int = 100, output_tokens: int = 10) -> Answer:
    """A whole chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": input_tokens, "completion_tokens": output_tokens}
    return Answer(content=json.dumps({"choices": [choice], "usage": usage}).encode())


def encode(answer: Answer) -> bytes:
    headers = {"Content-Length": str(len(answer.content)), "Connection": "close", **answer.headers}
    lines = [f"HTTP/1.1 {answer.status} status", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + answer.content


def mark_of(body: Body) -> str:
    """The mark that the judge is told of."""
    found = re.search(r"the mark (\w+)\.", body["messages"][0]["content"])
    assert found is not None
    return found[1]


def texts_of(body: Body) -> dict[str, str]:
    """The marked texts of a question, as an attentive judge reads them."""
    mark = mark_of(body)
    pattern = rf"\[\[{mark} ([A-Z ]+)\]\]\n(.*?)\n\[\[{mark} end of \1\]\]"
    return dict(re.findall(pattern, body["messages"][1]["content"], re.DOTALL))


def keys_of(body: Body) -> list[str]:
    """The keys that the verdict must have."""
    return list(body["response_format"]["json_schema"]["schema"]["required"])


def prefers(quality: Callable[[str], float]) -> Mind:
    """A judge without bias: the answer of higher quality is clearly better."""

    def mind(body: Body) -> Mapping[str, object]:
        texts = texts_of(body)
        a, b = quality(texts["ANSWER A"]), quality(texts["ANSWER B"])
        return {"better": "tie" if a == b else "A" if a > b else "B", "strength": 2}

    return mind


def always_a(body: Body) -> Mapping[str, object]:
    """A judge with nothing but bias."""
    return {"better": "A", "strength": 3}
