"""A judge that is asked questions: from cache where it answered before, else from the endpoint, within its budget.

It must not know what questions are about. Invariants: the same question is never under way twice in a process; only a
reply that has a verdict is kept; no request starts that might overdraw the budget as far as this process can tell.
"""

import asyncio
import functools
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from hashlib import blake2b

from reward_server.judges.chat_protocol import Reply, guessed_input_tokens
from reward_server.judges.config import JudgeConfig
from reward_server.judges.endpoint import Endpoint, open_endpoint
from reward_server.judges.faults import JudgeFault, Unreadable
from reward_server.judges.question import Question, Verdict, read_verdict, schema, to_messages
from reward_server.judges.store import Store, open_store
from services.contracts.records import FailureCode, Json

logger = logging.getLogger(__name__)

MILLION = 1_000_000
TELL_EVERY_S = 60.0


@dataclass(kw_only=True, slots=True)
class Counts:
    """What a judge did since it was opened; `paid` is by this process."""

    questions: int = 0
    cache_hits: int = 0
    unreadable: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    paid: float = 0.0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


@asynccontextmanager
async def open_judge(config: JudgeConfig) -> AsyncIterator["Judge"]:
    """Open cache and endpoint; at the end, tell what was done.

    Raises:
        UserError: one of the two cannot be used.
    """
    with open_store(config.cache) as store:
        async with open_endpoint(config) as endpoint:
            judge = Judge(config, endpoint, store)
            try:
                yield judge
            finally:
                await judge.close()
                judge.tell()


@dataclass(slots=True)
class Judge:
    """An open judge."""

    config: JudgeConfig
    endpoint: Endpoint
    store: Store
    counts: Counts = field(default_factory=Counts)
    _told_at: float = field(default_factory=time.monotonic)
    _reserved: float = 0.0
    _under_way: dict[bytes, "asyncio.Task[Verdict]"] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What distinguishes it from other judges."""
        return f"{self.config.model} at {self.config.base_url}"

    async def ask(self, question: Question) -> Verdict:
        """The verdict on a question.

        Raises:
            JudgeFault: there is none; its failure says whose fault that is.
        """
        self.counts.questions += 1
        if time.monotonic() - self._told_at >= TELL_EVERY_S:
            self.tell()
        fault: str | None = None
        for _ in range(self.config.verdict_attempts):
            body = request_body(self.config, question, fault)
            key = digest(self.config.base_url, body)
            try:
                return await self._verdict(key, body, question)
            except Unreadable as error:
                self.counts.unreadable += 1
                fault = str(error)
        raise JudgeFault(
            f"{self.name} gave no verdict in {self.config.verdict_attempts} replies (verdict_attempts): the last could "
            f"not be used, because {fault}",
            code=FailureCode.INTERNAL,
        )

    def counters(self) -> dict[str, float]:
        """The counts, and the requests that they took."""
        return {"requests": self.endpoint.num_requests, **asdict(self.counts)}

    def tell(self) -> None:
        """Write the counts to the log."""
        self._told_at = time.monotonic()
        facts = {"judge": self.name, **self.counters()}
        words = ", ".join(f"{value:g} {name.replace('_', ' ')}" for name, value in asdict(self.counts).items())
        logger.info("judge %s: %s", self.name, words, extra={"facts": facts})

    async def close(self) -> None:
        """Give up the requests under way."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _verdict(self, key: bytes, body: Mapping[str, Json], question: Question) -> Verdict:
        kept = self.store.get(key)
        if kept is not None:
            self.counts.cache_hits += 1
            return read_verdict(kept.text, question, output=self.config.output)
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(self._new_verdict(key, body, question))
            task.add_done_callback(functools.partial(self._forget, key))
        else:
            self.counts.cache_hits += 1
        return await asyncio.shield(task)  # It is paid for, and goes on when who asked has left.

    async def _new_verdict(self, key: bytes, body: Mapping[str, Json], question: Question) -> Verdict:
        reply = await self._paid(body)
        if reply.is_cut:
            raise Unreadable(f"it was cut at {self.config.max_reply_tokens} tokens (max_reply_tokens)")
        verdict = read_verdict(reply.text, question, output=self.config.output)
        self.store.put(key, reply)
        return verdict

    def _forget(self, key: bytes, task: "asyncio.Task[Verdict]") -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # Whoever still waits is told; nobody may be left.

    async def _paid(self, body: Mapping[str, Json]) -> Reply:
        num_input, num_output = guessed_input_tokens(body), self.config.max_reply_tokens
        at_most = self._price(num_input, num_output)
        self._check_budget(at_most)
        self._reserved += at_most
        try:
            reply = await self.endpoint.complete(body, num_tokens=num_input + num_output)
        finally:
            self._reserved -= at_most
        self._count(reply)
        return reply

    def _check_budget(self, at_most: float) -> None:
        budget = self.config.budget
        if budget is None:
            return
        paid = self.store.paid(self.name)
        if paid + self._reserved + at_most > budget:
            raise JudgeFault(
                f"the budget of {self.name} is spent: {paid:.4f} of {budget:g} (judge.budget) are paid, and the next "
                f"request may cost {at_most:.4f}; raise judge.budget",
                code=FailureCode.UNAVAILABLE,
            )

    def _price(self, input_tokens: int, output_tokens: int) -> float:
        return (input_tokens * self.config.input_price + output_tokens * self.config.output_price) / MILLION

    def _count(self, reply: Reply) -> None:
        price = self._price(reply.input_tokens, reply.output_tokens)
        self.counts.input_tokens += reply.input_tokens
        self.counts.output_tokens += reply.output_tokens
        self.counts.paid += price
        if price:
            self.store.pay(self.name, price)


def request_body(config: JudgeConfig, question: Question, fault: str | None) -> dict[str, Json]:
    """The request that asks a question; the same question gives the same request."""
    messages = to_messages(question, output=config.output, max_text_characters=config.max_text_characters, fault=fault)
    body: dict[str, Json] = {
        "model": config.model,
        "messages": messages,
        "temperature": config.temperature,
        "max_tokens": config.max_reply_tokens,
    }
    if config.output == "json_schema":
        form: Json = {"name": "verdict", "strict": True, "schema": schema(question)}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return {name: value for name, value in (body | config.parameters).items() if value is not None}


def version_of(config: JudgeConfig, *questions: Question) -> str:
    """The judge's name with a hash of everything that shapes its answers to questions of these kinds."""
    shapes = b"".join(digest(config.base_url, request_body(config, question, None)) for question in questions)
    shapes += str(config.max_text_characters).encode()  # It shapes what is asked about long texts alone.
    return f"{config.model}@{blake2b(shapes, digest_size=4).hexdigest()}"


def digest(base_url: str, body: Mapping[str, Json]) -> bytes:
    """What identifies a request to an endpoint."""
    return blake2b(json.dumps([base_url, body], sort_keys=True).encode(), digest_size=16).digest()
