"""The controller's side of the reward contract: scores samples on any number of servers of one reward.

It must not know gRPC, what a reward means, or what is done with it. Invariants: every sample gets exactly one outcome,
in order; a number comes only from a reply that passed every check of `reward_validation`; every failure ends in a
retry, a typed `Failure` of the sample, or a typed error. A server is asked to describe itself on each new
connection, so servers that disagree never mix; nor do versions of the scores of one `score`.
"""

import asyncio
import itertools
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from services.contracts.errors import RewardContractError, RewardUnavailable, UserError
from services.contracts.records import (
    Failure,
    FailureCode,
    Reward,
    RewardDescription,
    RewardSample,
    reward_versions,
)
from services.protos.reward.v1 import reward_pb2
from services.transport.reward_codec import LoneRequests, decode_outcome, encode_request_id
from services.transport.reward_endpoint import Endpoint
from services.transport.reward_replicas import Lookup, Replicas, look_up
from services.transport.reward_retry import CallFault, Outage, Patience, Refusal, SampleFault
from services.transport.reward_settings import RewardClientConfig, check_addresses
from services.transport.reward_tally import RewardTally
from services.transport.reward_validation import fault_in_reply, fault_in_reward
from services.transport.tasks import all_or_cancel

logger = logging.getLogger(__name__)

FAILURES_OF_THE_SERVICE = (FailureCode.UNAVAILABLE, FailureCode.OVERLOADED)
REQUEST_OVERHEAD_BYTES = 64
WARN_EVERY_S = 5.0


class Encoded(NamedTuple):
    """A sample on its way: a request with this sample alone, to be put together with others."""

    sample_id: str
    request: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The samples of one `score`, on their way to an outcome each."""

    samples: Mapping[str, RewardSample]
    outcomes: dict[str, Reward | Failure] = field(default_factory=dict)


class RewardClient:
    """Implements `RewardScorer` over gRPC. Used from one event loop, which need not run yet when it is made.

    Args:
        addresses: servers of one reward, each HOST:PORT; a name that stands for several machines is as many servers.
        config: deadlines, retries and limits.
        look_up: finds the machines behind a name.

    Attributes:
        tally: what scoring cost.

    Raises:
        UserError: there is no address, or one may not be used, or a file of certificates or tokens cannot be.
    """

    def __init__(
        self, addresses: Sequence[str], config: RewardClientConfig | None = None, *, look_up: Lookup = look_up
    ) -> None:
        self._config = config or RewardClientConfig()
        if not addresses:
            raise UserError("a reward client needs the address of at least one reward server, such as 127.0.0.1:50051")
        check_addresses(addresses, self._config)
        self.tally = RewardTally()
        self._replicas = Replicas(addresses, self._config, look_up, self.tally)
        self._addresses = ", ".join(addresses)
        self._in_flight = asyncio.Semaphore(self._config.max_in_flight_calls)
        self._description: RewardDescription | None = None
        self._warned_at = float("-inf")
        self._warned_of = ""
        self._name = uuid.uuid4().hex
        self._numbers = itertools.count()

    async def describe(self, *, budget_s: float | None = None) -> RewardDescription:
        """What the service says of itself; asked of every server once, and then remembered.

        Args:
            budget_s: how long to wait for one server to answer; `unavailable_budget_s` where it is not given.

        Raises:
            UserError: a server does not let this client in, or is not the one that it was said to be.
            RewardUnavailable, RewardContractError.
        """
        if self._description is None:
            await self._retry(self._attempt_describe, budget_s)
        assert self._description is not None
        return self._description

    @property
    def description(self) -> RewardDescription:
        """What `describe` found."""
        assert self._description is not None, "describe() was not called"
        return self._description

    async def score(self, samples: Sequence[RewardSample]) -> list[Reward | Failure]:
        """One outcome per sample, in order, all rewards of one version. A `Failure` is final: it was tried again.

        Raises:
            RewardUnavailable: no server answered within `unavailable_budget_s`.
            RewardContractError: a server broke the contract; names server and sample.
            ValueError: two samples have one id.
        """
        batch = Batch(samples={sample.id: sample for sample in samples})
        if len(batch.samples) < len(samples):
            raise ValueError("two samples have the same id; ids must be unique within one call of score()")
        if not samples:
            return []
        description = await self.describe()
        max_bytes = min(self._config.max_request_bytes, description.max_request_bytes)
        encoded = self._encode(batch, max_bytes, with_token_ids=description.needs_token_ids)
        calls = list(split(encoded, description.max_batch_samples, max_bytes))
        home: Endpoint | None = None

        async def attempt() -> None:
            nonlocal home
            await all_or_cancel(self._settle(batch, call, home) for call in calls)
            if len(reward_versions(batch.outcomes.values())) > 1:
                home = await self._replicas.pick()  # For all of it, as replicas may differ in their version for long.
            raise_for_versions(batch.outcomes.values())

        await self._retry(attempt)
        return [batch.outcomes[sample.id] for sample in samples]

    async def close(self) -> None:
        """Close the connections; calls under way are cancelled."""
        await self._replicas.close()

    def _encode(self, batch: Batch, max_bytes: int, *, with_token_ids: bool) -> Iterator[Encoded]:
        """The samples that can be sent; the others fail at once."""
        requests = LoneRequests(with_token_ids=with_token_ids)
        for sample in batch.samples.values():
            try:
                request = requests.encode(sample)
                num_bytes = len(request) + REQUEST_OVERHEAD_BYTES
                if num_bytes > max_bytes:
                    raise ValueError(self._too_large(num_bytes))
            except ValueError as error:
                text = f"sample {sample.id!r} cannot be sent: {error}"
                batch.outcomes[sample.id] = Failure(code=FailureCode.INVALID_SAMPLE, message=text)
            else:
                yield Encoded(sample.id, request)

    def _too_large(self, num_bytes: int) -> str:
        ours, theirs = self._config.max_request_bytes, self.description.max_request_bytes
        if theirs < ours:
            return f"{num_bytes} bytes exceed the {theirs} that the service takes; raise its max_message_bytes"
        return (
            f"{num_bytes} bytes exceed {self._config.section}max_request_bytes ({ours}); raise it, to {theirs} at most"
        )

    async def _settle(self, batch: Batch, call: Sequence[Encoded], home: Endpoint | None) -> None:
        """Score what fits one call, again and again until each outcome is final; at `home` where that is on duty."""
        pending = list(call)
        endpoint: Endpoint | None = None

        async def attempt() -> None:
            nonlocal endpoint
            async with self._in_flight:
                endpoint = await self._replicas.pick(prefer=home, avoid=endpoint)
                batch.outcomes.update(await self._attempt_score(endpoint, batch, pending))
                endpoint = endpoint if home is None else None  # What home answered is asked of home again.
            pending[:] = [one for one in pending if is_retryable(batch.outcomes[one.sample_id])]
            raise_for([batch.outcomes[one.sample_id] for one in pending])

        await self._retry(attempt)

    async def _attempt_score(
        self, endpoint: Endpoint, batch: Batch, call: Sequence[Encoded]
    ) -> dict[str, Reward | Failure]:
        """One call to one server, and every check of its reply."""
        description = await self._agreed_description(endpoint)
        self.tally.num_calls += 1
        request_id = f"{self._name}-{next(self._numbers)}"
        response = await endpoint.score(encode_request_id(request_id) + b"".join([one.request for one in call]))
        results = list(response.results)
        fault = fault_in_reply(
            asked=request_id,
            answered=response.request_id,
            sample_ids=[one.sample_id for one in call],
            result_ids=[result.sample_id for result in results],
        )
        if fault is not None:
            raise RewardContractError(f"{endpoint.address} broke the reward contract: {fault}")
        return {
            result.sample_id: checked_outcome(result, batch.samples[result.sample_id], description, endpoint.address)
            for result in results
        }

    async def _attempt_describe(self) -> None:
        """Ask every server; one answer is enough, as the others are asked again before their first call."""
        endpoints = await self._replicas.all()
        answers = await asyncio.gather(*map(self._agreed_description, endpoints), return_exceptions=True)
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        barred = next((error for error in errors if isinstance(error, Refusal)), None)
        if barred is not None:
            raise UserError(str(barred)) from barred
        worst = next((error for error in errors if not isinstance(error, Outage)), None)
        if worst is not None or len(errors) == len(answers):
            raise worst or errors[0]
        for error in errors:
            logger.warning("a reward server is not there yet: %s", error)

    async def _agreed_description(self, endpoint: Endpoint) -> RewardDescription:
        found = await endpoint.describe()
        self._description = self._description or found
        if found != self._description:
            raise RewardContractError(
                f"{endpoint.address} serves another reward than the server that answered first: {found}, not "
                f"{self._description}; give the addresses of one reward only"
            )
        return found

    async def _retry(self, attempt: Callable[[], Awaitable[None]], budget_s: float | None = None) -> None:
        patience = Patience(self._config, budget_s)
        try:
            with self.tally.trying() as again:
                await patience.retry(attempt, lambda error: self._note_retry(error, again))
        except SampleFault:
            pass  # The samples' last failures are their outcomes.
        except CallFault as error:
            raise RewardContractError(f"gave up after {self._config.max_attempts} attempts: {error}") from error
        except Outage as error:
            setting = f"{self._config.section}unavailable_budget_s ({patience.budget_s:g})"
            raise RewardUnavailable(
                f"no answer from the reward service ({self._addresses}) for {patience.outage_s:.0f} s; the last error: "
                f"{error}. Start it (`trireme reward serve`), or test it (`trireme reward check`)"
                + (f", or raise {setting}" if budget_s is None else "")
            ) from error

    def _note_retry(self, error: BaseException, again: Callable[[], None]) -> None:
        again()
        now = time.monotonic()
        if now - self._warned_at >= WARN_EVERY_S:
            self._warned_at = now
            why, self._warned_of = ("as before" if str(error) == self._warned_of else error), str(error)
            logger.warning("scoring waits for the reward service (%s): %s", self._addresses, why)


def checked_outcome(
    result: reward_pb2.Result, sample: RewardSample, description: RewardDescription, address: str
) -> Reward | Failure:
    """The outcome in a result. Raises `RewardContractError` where the contract forbids it."""
    outcome = decode_outcome(result, version=description.version)
    fault = "it has neither a reward nor a failure" if outcome is None else None
    if isinstance(outcome, Reward):
        fault = fault_in_reward(outcome, description=description, completion=sample.completion)
    if outcome is None or fault is not None:
        raise RewardContractError(f"{address} broke the reward contract for sample {sample.id!r}: {fault}")
    return outcome


def split(samples: Iterable[Encoded], max_samples: int, max_bytes: int) -> Iterator[list[Encoded]]:
    """Consecutive runs of samples, each small enough for one request."""
    run: list[Encoded] = []
    num_bytes = REQUEST_OVERHEAD_BYTES
    for sample in samples:
        if run and (len(run) >= max_samples or num_bytes + len(sample.request) > max_bytes):
            yield run
            run, num_bytes = [], REQUEST_OVERHEAD_BYTES
        run.append(sample)
        num_bytes += len(sample.request)
    if run:
        yield run


def is_retryable(outcome: Reward | Failure) -> bool:
    """Whether the same sample may get a reward later."""
    return isinstance(outcome, Failure) and outcome.retryable


def raise_for(pending: Sequence[Reward | Failure]) -> None:
    """Raise `Outage` when one of the pending failures is the service's, `SampleFault` when all are the samples'."""
    failures = [outcome for outcome in pending if isinstance(outcome, Failure)]
    of_service = [failure for failure in failures if failure.code in FAILURES_OF_THE_SERVICE]
    for kind, shown in ((Outage, of_service), (SampleFault, failures)):
        if shown:
            raise kind(f"{len(shown)} samples failed, such as with {shown[0].code}: {shown[0].message}")


def raise_for_versions(outcomes: Iterable[Reward | Failure]) -> None:
    """Raise `Outage` when the version changed between the calls, so that all are to be scored again."""
    versions = reward_versions(outcomes)
    if len(versions) > 1:
        raise Outage(f"samples that belong together were scored by versions {', '.join(versions)}")
