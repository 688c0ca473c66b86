"""What every check of a reward service shares: a connection, calls whose answers are checked, and words for a status.

It must not know which checks there are. Invariant: `score` returns only what the client would accept; whatever else
comes back leaves here as a `Violation` that says what is wrong and what to do.
"""

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from services.contracts.records import Failure, Json, Reward, RewardDescription, RewardSample, reward_versions
from services.protos.reward.v1 import reward_pb2, reward_pb2_grpc
from services.transport.reward_codec import SERVICE_NAME, decode_outcome, encode_sample
from services.transport.reward_validation import fault_in_reply, fault_in_reward

Status = grpc.StatusCode
SHARE_OF_SPREAD = 0.05
"""By how much of the spread of scores two of one sample may differ."""


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
        stop: tells the service to end; None where that is not to be tested.
        find_fault: why no connection comes about, where TLS is the reason.
        description: what the service said of itself, once it was asked.
    """

    address: str
    channel: Any  # Any: grpc has no types
    reference: Mapping[str, Json]
    timeout_s: float
    stop: Callable[[], Awaitable[None]] | None = None
    find_fault: Callable[[], Awaitable[str | None]] | None = None
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

    def different(self, count: int) -> list[RewardSample]:
        """Answers that count up from 41, so that a rule that looks for 42 tells one of them from the others."""
        return self.samples([f"The answer is {41 + number}." for number in range(count)])

    async def alone(self, samples: Sequence[RewardSample]) -> list[Reward | Failure]:
        """As `score`, each sample in a call of its own, one after the other."""
        return [outcome for sample in samples for outcome in await self.score([sample])]

    async def send(self, samples: Sequence[RewardSample], timeout_s: float | None = None) -> reward_pb2.ScoreResponse:
        """The unchecked response, but to this request. Raises grpc's errors."""
        messages = [encode_sample(sample, with_token_ids=self.description.needs_token_ids) for sample in samples]
        request = reward_pb2.ScoreRequest(request_id=uuid.uuid4().hex, samples=messages)
        stub = reward_pb2_grpc.RewardServiceStub(self.channel)
        response: reward_pb2.ScoreResponse = await stub.Score(request, timeout=timeout_s or self.timeout_s)
        if response.request_id != request.request_id:
            raise Violation(
                f"it answered request {response.request_id!r} where {request.request_id!r} was asked; copy request_id "
                "from the request to its own response"
            )
        return response

    async def score(self, samples: Sequence[RewardSample], timeout_s: float | None = None) -> list[Reward | Failure]:
        """One checked outcome per sample, in order. Raises `Violation` and grpc's errors."""
        response = await self.send(samples, timeout_s)
        fault = fault_in_reply(
            asked=response.request_id,
            answered=response.request_id,
            sample_ids=[sample.id for sample in samples],
            result_ids=[result.sample_id for result in response.results],
        )
        if fault is not None:
            raise Violation(f"{fault}; answer each sample of the request exactly once, under its own id")
        results = {result.sample_id: result for result in response.results}
        outcomes = [self._outcome(results[sample.id], sample) for sample in samples]
        versions = reward_versions(outcomes)
        if len(versions) > 1:
            raise Violation(
                f"the rewards of one response are of versions {', '.join(versions)}; score all samples of a call with "
                "one version, because they are compared with one another"
            )
        return outcomes

    def _outcome(self, result: reward_pb2.Result, sample: RewardSample) -> Reward | Failure:
        outcome = decode_outcome(result, version=self.description.version)
        if outcome is None:
            raise Violation(f"the result of {sample.id!r} has neither a reward nor a failure; set one of the two")
        fault = None
        if isinstance(outcome, Reward):
            fault = fault_in_reward(outcome, description=self.description, completion=sample.completion)
        if fault is not None:
            raise Violation(
                f"sample {sample.id!r}: {fault}; send what Describe declares, and a failure where there is no number"
            )
        return outcome


def in_words(error: grpc.aio.AioRpcError, timeout_s: float) -> str:
    """What a status that ended a call says of the service."""
    code, details = error.code(), error.details() or "no details"
    if code is Status.DEADLINE_EXCEEDED:
        return f"no answer within {timeout_s:g} s; answer or refuse sooner, or give the check more with --timeout-s"
    if code is Status.UNIMPLEMENTED:
        return f"{SERVICE_NAME} or this method of it is not there ({details}); does another service run there?"
    if code is Status.UNAVAILABLE:
        return f"the connection broke, or the call was turned away ({details}); does the server crash?"
    if "deserializing response" in details:
        return "the answer is no message of the contract; is the service built from this reward.proto?"
    if code in (Status.UNAUTHENTICATED, Status.PERMISSION_DENIED):
        return f"it does not let this check in ({code.name}: {details})"
    return (
        f"the whole call failed with {code.name} ({details}); answer a sample that cannot be scored with a failure of "
        "its own, beside the results of the others"
    )


def differ(outcomes: Sequence[Reward | Failure], others: Sequence[Reward | Failure]) -> bool:
    """Whether the same samples have other scores. What a model computes changes a little with its batch."""
    values = [outcome.value for outcome in outcomes if isinstance(outcome, Reward)]
    tolerance = SHARE_OF_SPREAD * (max(values) - min(values)) if values else 0.0
    return any(not _alike(one, other, tolerance) for one, other in zip(outcomes, others, strict=True))


def unless_all_alike(outcomes: Sequence[Reward | Failure]) -> str:
    """What to add where equal scores would hide that samples have each other's."""
    if len(outcomes) < 2 or differ(outcomes, [outcomes[0]] * len(outcomes)):
        return ""
    return f"; all alike ({outcome_in_words(outcomes[0])}), so it would not show if they had each other's"


def _alike(one: Reward | Failure, other: Reward | Failure, tolerance: float) -> bool:
    if isinstance(one, Reward) and isinstance(other, Reward):
        return abs(one.value - other.value) <= tolerance
    return isinstance(one, Failure) and isinstance(other, Failure) and one.code is other.code


def outcome_in_words(outcome: Reward | Failure) -> str:
    """An outcome that keeps the contract."""
    if isinstance(outcome, Reward):
        return f"value {outcome.value:g}"
    return f"a typed failure ({outcome.code}: {outcome.message})"
