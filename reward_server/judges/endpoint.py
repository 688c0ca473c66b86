"""Chat completions over HTTP. The only file that knows HTTP.

It must not know what is asked. Invariants: every request has a deadline and a bounded response; what may pass is tried
again, at most `max_attempts` times and no sooner than the endpoint asked; the API key goes into a header and nowhere
else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from pydantic import SecretStr
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from reward_server.judges.chat_protocol import Reply, model_names, to_reply
from reward_server.judges.config import JudgeConfig
from reward_server.judges.faults import JudgeFault
from reward_server.judges.pace import Pace
from services.contracts.errors import UserError
from services.contracts.records import FailureCode, Json

if TYPE_CHECKING:
    import httpx  # Imported where it is used: that takes longer than the rest of a reward server.

MAX_RESPONSE_BYTES = 4 << 20
MAX_BACKOFF_S = 8.0
SHOWN_CHARACTERS = 300
PASSING = (408, 409, 425, 429)
FAULTS_OF_THE_BODY = (400, 413, 422)


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """An HTTP response, read to its end."""

    status: int
    retry_after_s: float
    content: bytes


class Passing(JudgeFault):
    """The endpoint failed in a way that may pass."""


@asynccontextmanager
async def open_endpoint(config: JudgeConfig) -> AsyncIterator[Endpoint]:
    """Connect, and check that the endpoint answers and has the model.

    Raises:
        UserError: it does not, or there is no API key where one is said to be.
    """
    import httpx

    logging.getLogger("httpx").setLevel(logging.WARNING)  # It writes a line for each request.
    key = config.api_key()
    headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
    async with httpx.AsyncClient(
        base_url=config.base_url,
        headers=headers,
        timeout=config.timeout_s,
        trust_env=config.base_url.startswith("https:"),  # A proxy would read what is not encrypted.
    ) as client:
        endpoint = Endpoint(client, config, key)
        await endpoint.check()
        yield endpoint


class Endpoint:
    """An open endpoint.

    Args:
        client: has the base URL and sends the key.
        key: never to be shown, whoever repeats it.
    """

    def __init__(self, client: httpx.AsyncClient, config: JudgeConfig, key: SecretStr | None) -> None:
        self.num_requests = 0
        self._client = client
        self._config = config
        self._key = key
        self._requests = Pace(config.requests_per_minute)
        self._tokens = Pace(config.tokens_per_minute)
        self._held_until = float("-inf")
        self._in_flight = asyncio.Semaphore(config.max_in_flight)

    async def check(self) -> None:
        """Ask for the list of models. Raises `UserError` unless the configured one can be asked."""
        try:
            response = await self._send("GET", "/models")
        except JudgeFault as error:
            raise UserError(f"{error}; start it, or set judge.base_url") from error
        if response.status in (401, 403):
            raise UserError(f"{self._shown(response)}; give the right key by judge.api_key_env or judge.api_key_file")
        names = model_names(response.content) if response.status == 200 else ()
        if names and self._config.model not in names:
            raise UserError(
                f"the judge endpoint {self._config.base_url} has no model {self._config.model!r}; it has "
                f"{', '.join(names[:10])}; set judge.model"
            )

    async def complete(self, body: Mapping[str, Json], *, num_tokens: int) -> Reply:
        """One chat completion, which may take `num_tokens`, prompt and reply together. Raises `JudgeFault`."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Passing),
            stop=stop_after_attempt(self._config.max_attempts),
            wait=wait_random_exponential(multiplier=0.25, max=MAX_BACKOFF_S),
            reraise=True,
        )
        return await retrying(self._attempt, body, num_tokens)

    async def _attempt(self, body: Mapping[str, Json], num_tokens: int) -> Reply:
        async with self._in_flight:
            await self._turn(num_tokens)
            self.num_requests += 1
            response = await self._send("POST", "/chat/completions", body)
        self._raise_for(response)
        reply = self._reply(response, body)
        self._tokens.give_back(num_tokens - reply.input_tokens - reply.output_tokens)
        return reply

    async def _turn(self, num_tokens: int) -> None:
        """Wait until another request may start."""
        now = time.monotonic()
        deadline = now + self._config.max_wait_s
        while (start := max(self._held_until, self._requests.next_start(), self._tokens.next_start())) > now:
            if start > deadline:
                raise JudgeFault(
                    f"the judge endpoint {self._config.base_url} takes no more for {start - now:.0f} s, by its word or "
                    "by judge.requests_per_minute and tokens_per_minute; the longest wait is judge.max_wait_s "
                    f"({self._config.max_wait_s:g})",
                    code=FailureCode.OVERLOADED,
                    retryable=True,
                )
            await asyncio.sleep(start - now)
            now = time.monotonic()
        self._requests.take(1, now=now)
        self._tokens.take(num_tokens, now=now)

    async def _send(self, method: str, path: str, body: Mapping[str, Json] | None = None) -> Response:
        import httpx

        try:
            async with asyncio.timeout(self._config.timeout_s), self._client.stream(method, path, json=body) as stream:
                content = b""
                async for chunk in stream.aiter_bytes():
                    content += chunk
                    if len(content) > MAX_RESPONSE_BYTES:
                        raise self._passing(f"answered with more than {MAX_RESPONSE_BYTES} bytes")
                retry_after_s = seconds_until(stream.headers.get("Retry-After", ""))
                return Response(status=stream.status_code, retry_after_s=retry_after_s, content=content)
        except (TimeoutError, httpx.TimeoutException) as error:
            text = f"did not answer within {self._config.timeout_s:g} s (judge.timeout_s)"
            raise self._passing(text, FailureCode.TIMEOUT) from error
        except httpx.RequestError as error:
            raise self._passing(f"cannot be reached: {str(error) or type(error).__name__}") from error

    def _raise_for(self, response: Response) -> None:
        if response.status == 200:
            return
        if response.status in PASSING or response.status >= 500:
            self._held_until = max(self._held_until, time.monotonic() + response.retry_after_s)
            code = FailureCode.OVERLOADED if response.status == 429 else FailureCode.UNAVAILABLE
            raise Passing(self._shown(response), code=code, retryable=True)
        is_of_body = response.status in FAULTS_OF_THE_BODY
        code = FailureCode.INVALID_SAMPLE if is_of_body else FailureCode.UNAVAILABLE
        raise JudgeFault(self._shown(response), code=code)

    def _reply(self, response: Response, body: Mapping[str, Json]) -> Reply:
        try:
            return to_reply(response.content, body)
        except ValueError as error:
            raise self._passing(f"answered with no chat completion: {response.content[:80]!r}") from error

    def _passing(self, what: str, code: FailureCode = FailureCode.UNAVAILABLE) -> Passing:
        return Passing(f"the judge endpoint {self._config.base_url} {what}", code=code, retryable=True)

    def _shown(self, response: Response) -> str:
        text = response.content.decode(errors="replace")
        if self._key is not None:
            text = text.replace(self._key.get_secret_value(), "***")
        text = text[:SHOWN_CHARACTERS]
        return f"the judge endpoint {self._config.base_url} answered with HTTP status {response.status}: {text!r}"


def seconds_until(retry_after: str) -> float:
    """How long a Retry-After header asks to wait: seconds, or a date; 0 where it says neither."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except ValueError:
            return 0.0
    return seconds if 0 < seconds < float("inf") else 0.0
