"""Whether a running reward service keeps the contract; each check says in plain words what it found.

It must not know whose service it is, nor print. Invariant: a check passes only on an answer that the client would
accept; a `Failure` of a sample is such an answer, because the service may need references that no check can invent.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.contracts.errors import RewardContractError
from services.contracts.records import Failure, Json, Reward, RewardDescription, RewardSample
from services.protos.reward.v1 import reward_pb2, reward_pb2_grpc
from services.transport.reward_client import checked_outcome
from services.transport.reward_codec import SERVICE_NAME, decode_description, encode_sample
from services.transport.reward_validation import fault_in_description, fault_in_reply, range_text

NUM_SAMPLES = 16
NUM_CALLS = 8
LONG_COMPLETION_CHARACTERS = 100_000
SHORT_DEADLINE_S = 0.001
UNICODE = "日本語 עברית 🚣🏽‍♀️ e\u0301 \u0000 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ½"

Verdict = Literal["passed", "warning", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    verdict: Verdict
    text: str


class Warn(Exception):
    """The service may do this, but somebody will be sorry."""


class Violation(Exception):
    """The service breaks the contract."""


@dataclass(slots=True)
class Session:
    """A connection to the service under test.

    Attributes:
        reference: sent with every sample.
        timeout_s: deadline of each call, in seconds.
        description: what the service said of itself, once it was asked.
    """

    address: str
    channel: Any  # Any: grpc has no types
    reference: Mapping[str, Json]
    timeout_s: float
    description: RewardDescription = field(default_factory=lambda: RewardDescription(name="unknown"))

    def samples(self, completions: Sequence[str]) -> list[RewardSample]:
        return [
            RewardSample(
                id=f"sample/{index}",
                prompt="What is six times seven?",
                completion=completion,
                token_ids=tuple(range(1, 1 + min(len(completion), 1000))),
                reference=self.reference,
            )
            for index, completion in enumerate(completions)
        ]

    async def score(self, samples: Sequence[RewardSample], timeout_s: float | None = None) -> list[Reward | Failure]:
        """One checked outcome per sample, in order. Raises `RewardContractError` and grpc's errors."""
        messages = [encode_sample(sample, with_token_ids=self.description.needs_token_ids) for sample in samples]
        request = reward_pb2.ScoreRequest(request_id=uuid.uuid4().hex, samples=messages)
        stub = reward_pb2_grpc.RewardServiceStub(self.channel)
        response = await stub.Score(request, timeout=timeout_s or self.timeout_s)
        fault = fault_in_reply(
            asked=request.request_id,
            answered=response.request_id,
            sample_ids=[sample.id for sample in samples],
            result_ids=[result.sample_id for result in response.results],
        )
        if fault is not None:
            raise Violation(fault)
        results = {result.sample_id: result for result in response.results}
        return [checked_outcome(results[s.id], s, self.description, self.address) for s in samples]


async def check_service(
    address: str, *, reference: Mapping[str, Json], timeout_s: float = 10.0
) -> AsyncIterator[Finding]:
    """Run every check; after one that leaves nothing to test (no answer, no description) the rest is left out."""
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        session = Session(address=address, channel=channel, reference=reference, timeout_s=timeout_s)
        for name, check in CHECKS.items():
            finding = await _run(name, check, session)
            yield finding
            if finding.verdict == "failed" and check in INDISPENSABLE:
                return


async def _run(name: str, check: Callable[[Session], Awaitable[str]], session: Session) -> Finding:
    try:
        return Finding(check=name, verdict="passed", text=await check(session))
    except Warn as warning:
        return Finding(check=name, verdict="warning", text=str(warning))
    except (Violation, RewardContractError) as error:
        return Finding(check=name, verdict="failed", text=str(error))
    except grpc.aio.AioRpcError as error:
        return Finding(check=name, verdict="failed", text=f"{error.code().name}: {error.details()}")


async def reachable(session: Session) -> str:
    try:
        await asyncio.wait_for(session.channel.channel_ready(), session.timeout_s)
    except TimeoutError:
        raise Violation(f"nothing that speaks gRPC answers at {session.address}") from None
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
    return f"{found.name}, version {found.version}, range {range_text(found)}, {needs}"


async def tells_its_health(session: Session) -> str:
    stub = health_pb2_grpc.HealthStub(session.channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(), timeout=session.timeout_s)
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    if name != "SERVING":
        raise Violation(f"grpc.health.v1 says {name}, while the service answers")
    return "grpc.health.v1 says SERVING"


async def reflects(session: Session) -> str:
    stub = reflection_pb2_grpc.ServerReflectionStub(session.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    try:
        async for response in stub.ServerReflectionInfo(iter([request]), timeout=session.timeout_s):
            names = [service.name for service in response.list_services_response.service]
            if SERVICE_NAME in names:
                return f"lists {len(names)} services"
    except grpc.aio.AioRpcError as error:
        raise Warn(f"no server reflection ({error.code().name}); tools such as grpcurl will need the .proto") from error
    raise Warn(f"server reflection does not list {SERVICE_NAME}")


async def scores_one(session: Session) -> str:
    (outcome,) = await session.score(session.samples(["The answer is 42."]))
    if isinstance(outcome, Failure):
        raise Warn(
            f"it fails the sample ({outcome.code}: {outcome.message}); give a reference that it understands: "
            """--reference '{"answer": "42"}'"""
        )
    return f"value {outcome.value:g}" + (f", components {dict(outcome.components)}" if outcome.components else "")


async def keeps_ids(session: Session) -> str:
    samples = session.samples([f"The answer is {number}." for number in range(NUM_SAMPLES)])
    outcomes = await session.score(samples)
    turned = await session.score(samples[::-1])
    if [_value(outcome) for outcome in outcomes] != [_value(outcome) for outcome in turned[::-1]]:
        raise Warn("the same samples in another order have other scores; is it random, or does it mix samples up?")
    return f"{NUM_SAMPLES} samples have one result each, whatever their order"


async def takes_empty_completion(session: Session) -> str:
    return _words(*await session.score(session.samples([""])))


async def takes_long_completion(session: Session) -> str:
    return _words(*await session.score(session.samples(["long " * (LONG_COMPLETION_CHARACTERS // 5)])))


async def takes_unicode(session: Session) -> str:
    (sample,) = session.samples([UNICODE])
    return _words(*await session.score([replace(sample, prompt=UNICODE)]))


async def keeps_calls_apart(session: Session) -> str:
    calls = [session.score(session.samples([f"The answer is {number}."])) for number in range(NUM_CALLS)]
    await asyncio.gather(*calls)
    return f"{NUM_CALLS} calls at once are answered, each with its own request id"


async def survives_deadlines(session: Session) -> str:
    samples = session.samples(["The answer is 42."])
    abandoned = (session.score(samples, timeout_s=SHORT_DEADLINE_S) for _ in range(NUM_CALLS))
    await asyncio.gather(*abandoned, return_exceptions=True)
    await session.score(samples)
    return f"answers after {NUM_CALLS} calls were given up on"


def _value(outcome: Reward | Failure) -> float | str:
    return outcome.value if isinstance(outcome, Reward) else outcome.code


def _words(outcome: Reward | Failure) -> str:
    if isinstance(outcome, Reward):
        return f"value {outcome.value:g}"
    return f"a typed failure ({outcome.code}: {outcome.message})"


INDISPENSABLE = (reachable, describes_itself)
CHECKS: Mapping[str, Callable[[Session], Awaitable[str]]] = {
    "reachable": reachable,
    "describe": describes_itself,
    "health": tells_its_health,
    "reflection": reflects,
    "one sample": scores_one,
    "order and ids": keeps_ids,
    "empty completion": takes_empty_completion,
    "long completion": takes_long_completion,
    "unicode": takes_unicode,
    "calls at once": keeps_calls_apart,
    "deadline": survives_deadlines,
}
