"""Whether a service that is told to end finishes what it accepted, and turns the rest away.

It must not know how the service is told. Invariants: calls are under way at that moment, and go on coming until nothing
answers any more or the time is up.
"""

import asyncio
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.contracts.records import RewardSample
from services.transport.reward_checks.session import Session, Status, Violation, Warn

NUM_FLOWS = 4
FEW_SAMPLES = 16
CALL_S = 0.5
WARM_UP_S = 0.6
SURELY_ACCEPTED_S = 0.2
PAUSE_S = 0.01
NO_CONNECTION = "failed to connect"
BROKEN_CONNECTION = re.compile(r"socket closed|connection reset|broken pipe|stream removed|rst_stream", re.IGNORECASE)
CANCELLED = re.compile(r"cancel", re.IGNORECASE)
TRIED_AGAIN = (Status.UNAVAILABLE, Status.RESOURCE_EXHAUSTED, Status.CANCELLED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call that ended: when it began and ended, and the error that ended it."""

    began: float
    ended: float
    error: Any = None  # Any: grpc has no types

    def was_under_way(self, moment: float) -> bool:
        return self.began <= moment < self.ended

    @property
    def was_cut(self) -> bool:
        """Whether the connection broke under it, so that the server sent not even a status."""
        return self.error is not None and bool(BROKEN_CONNECTION.search(self.error.details() or ""))

    @property
    def was_cancelled(self) -> bool:
        """Whether the server gave it up, unlike one that it turned away with a status of its own."""
        return self.error is not None and bool(CANCELLED.search(f"{self.error.code()} {self.error.details()}"))

    @property
    def found_nothing(self) -> bool:
        return self.error is not None and NO_CONNECTION in (self.error.details() or "")


@dataclass(slots=True)
class Traffic:
    """Calls without a pause, several at once, and what the service says of its health meanwhile."""

    session: Session
    samples: Sequence[RewardSample]
    calls: list[Call] = field(default_factory=list)
    began: dict[object, float] = field(default_factory=dict)
    health: list[int] = field(default_factory=list)
    is_watched: asyncio.Event = field(default_factory=asyncio.Event)

    async def call_on(self) -> None:
        """One call after the other until nothing answers."""
        flow = object()  # Of several, this one.
        while not self.is_over:
            self.began[flow] = began = time.monotonic()
            error = None
            try:
                await self.session.score(self.samples)
            except grpc.aio.AioRpcError as raised:
                error = raised
                await asyncio.sleep(PAUSE_S)
            self.calls.append(Call(began=began, ended=time.monotonic(), error=error))

    async def has_settled(self) -> None:
        """Wait until some call was surely accepted, though not for long: calls may be too short for that."""
        deadline = time.monotonic() + WARM_UP_S
        while (now := time.monotonic()) < deadline:
            if any(now - began > SURELY_ACCEPTED_S for began in self.began.values()):
                break
            await asyncio.sleep(PAUSE_S)

    async def watch_health(self) -> None:
        """Listen until it is bad or nobody speaks; whoever goes on listening keeps some servers from ending."""
        stub = health_pb2_grpc.HealthStub(self.session.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())  # No deadline: `drains` cancels it.
        with suppress(grpc.aio.AioRpcError):
            async for response in watch:
                self.health.append(response.status)
                self.is_watched.set()
                if response.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                    break
        watch.cancel()
        self.is_watched.set()

    @property
    def is_over(self) -> bool:
        return bool(self.calls) and self.calls[-1].found_nothing


async def drains(session: Session) -> str:
    assert session.stop is not None
    traffic = Traffic(session, await _samples_that_take_a_while(session))
    tasks = [asyncio.create_task(traffic.watch_health())]
    try:
        with suppress(TimeoutError):
            await asyncio.wait_for(traffic.is_watched.wait(), session.timeout_s)
        tasks += [asyncio.create_task(traffic.call_on()) for _ in range(NUM_FLOWS)]
        await traffic.has_settled()
        told = time.monotonic()
        await session.stop()
        ended, _ = await asyncio.wait(tasks, timeout=session.timeout_s)
        for task in ended:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return _verdict(traffic, told)


async def _samples_that_take_a_while(session: Session) -> Sequence[RewardSample]:
    """So many samples that a call of them lasts long enough to be caught under way."""
    limit = session.description.max_batch_samples
    few = session.samples(["The answer is 42."] * min(FEW_SAMPLES, limit))
    began = time.monotonic()
    await session.score(few)
    wanted = int(len(few) * CALL_S / (time.monotonic() - began))
    return session.samples(["The answer is 42."] * max(min(wanted, limit), len(few)))


def _verdict(traffic: Traffic, told: float) -> str:
    before = [call for call in traffic.calls if call.was_under_way(told)]
    dropped = [call for call in before if call.was_cancelled and told - call.began > SURELY_ACCEPTED_S]
    cut = [call for call in before if call.was_cut] or dropped
    if cut:
        raise Violation(
            f"{len(cut)} of {len(before)} calls that were under way when it was told to end were dropped "
            f"({cut[0].error.code().name}: {cut[0].error.details()}); finish what was accepted before you exit"
        )
    for call in traffic.calls:
        if call.error is not None and call.error.code() not in TRIED_AGAIN:
            raise Violation(
                f"while it ended, a call failed with {call.error.code().name} ({call.error.details()}); turn new calls "
                "away with UNAVAILABLE, which sends clients to another server"
            )
    if not traffic.is_over:
        raise Violation(f"it still runs {traffic.session.timeout_s:g} s after it was told to end; end on SIGTERM")
    if not before:
        raise Warn(
            "no call was under way when it was told to end: it ended, but whether it finishes calls is not known"
        )
    if health_pb2.HealthCheckResponse.NOT_SERVING not in traffic.health:
        raise Warn(
            "its health never said NOT_SERVING; set that first, so that clients and load balancers leave in time"
        )
    return f"{len(before)} calls under way were answered, later ones turned away, and its health said so"
