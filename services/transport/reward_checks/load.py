"""Checks of a service under many calls: at once, given up on, and more than it can take.

They must not measure speed. Invariant: what is asked for is bounded, and each call has a deadline.
"""

import asyncio
from collections import Counter

import grpc

from services.contracts.records import FailureCode
from services.transport.reward_checks.session import (
    Session,
    Status,
    Violation,
    Warn,
    differ,
    in_words,
    unless_all_alike,
)

NUM_CALLS = 8
NUM_CALLS_OF_OVERLOAD = 128
SAMPLES_PER_CALL = 16
SHORT_DEADLINES_S = (0.001, 0.005, 0.02, 0.05)
HONEST_REFUSALS = (Status.RESOURCE_EXHAUSTED, Status.UNAVAILABLE)


async def keeps_calls_apart(session: Session) -> str:
    samples = session.different(NUM_CALLS)
    alone = await session.alone(samples)
    found = [outcome for (outcome,) in await asyncio.gather(*(session.score([sample]) for sample in samples))]
    if differ(found, alone):
        raise Warn("calls at once have other scores than one by one; is it random, or does it mix calls up?")
    return f"{NUM_CALLS} calls at once have the answers that they have one by one{unless_all_alike(found)}"


async def survives_deadlines(session: Session) -> str:
    samples = session.samples(["The answer is 42."])
    abandoned = [session.score(samples, timeout_s=short) for short in SHORT_DEADLINES_S for _ in range(NUM_CALLS)]
    await asyncio.gather(*abandoned, return_exceptions=True)
    try:
        await session.score(samples)
    except grpc.aio.AioRpcError as error:
        raise Violation(
            f"after {len(abandoned)} calls whose callers gave up: {in_words(error, session.timeout_s)}; leave off the "
            "work for a call that was given up, and let go of what it holds"
        ) from error
    return f"answers after {len(abandoned)} calls were given up on"


async def refuses_overload_honestly(session: Session) -> str:
    texts = ["The answer is 42."] * min(SAMPLES_PER_CALL, session.description.max_batch_samples)
    calls = [session.score(session.samples(texts)) for _ in range(NUM_CALLS_OF_OVERLOAD)]
    ends = Counter([_end(outcome) for outcome in await asyncio.gather(*calls, return_exceptions=True)])
    for end in ends:
        if isinstance(end, Status) and end not in (*HONEST_REFUSALS, Status.DEADLINE_EXCEEDED):
            raise Violation(
                f"of {len(calls)} calls at once {ends[end]} failed with {end.name}; refuse what is too much with "
                "RESOURCE_EXHAUSTED, which clients try again"
            )
    try:
        await session.score(session.samples(texts[:1]))
    except grpc.aio.AioRpcError as error:
        raise Violation(
            f"it did not recover from {len(calls)} calls at once: {in_words(error, session.timeout_s)}"
        ) from error
    if ends[Status.DEADLINE_EXCEEDED]:
        raise Warn(
            f"of {len(calls)} calls at once {ends[Status.DEADLINE_EXCEEDED]} were neither answered nor refused within "
            f"{session.timeout_s:g} s; refuse what is too much with RESOURCE_EXHAUSTED, and its caller goes elsewhere"
        )
    refused = len(calls) - ends["answered"]
    return f"{len(calls)} calls at once: {ends['answered']} answered, {refused} refused for later, none lost"


def _end(outcome: object) -> Status | str:
    """How one call ended; what breaks the contract is raised."""
    if isinstance(outcome, grpc.aio.AioRpcError):
        return outcome.code()
    if isinstance(outcome, BaseException):
        raise outcome
    assert isinstance(outcome, list)
    overloaded = any(getattr(one, "code", None) is FailureCode.OVERLOADED for one in outcome)
    return "overloaded" if overloaded else "answered"
