"""Checks of the shape of answers: one result for each sample under its id, whatever their order, number or ids.

They must not judge what a score is, only whether it is the sample's own. Invariant: each check sends what the contract
allows, or what a service must refuse.
"""

from collections import Counter
from dataclasses import replace

import grpc

from services.contracts.records import Failure, Json
from services.transport.reward_checks.session import (
    Session,
    Status,
    Violation,
    Warn,
    differ,
    in_words,
    outcome_in_words,
    unless_all_alike,
)

NUM_SAMPLES = 8
MOST_SAMPLES_TRIED = 4096
MOST_BYTES_TRIED = 16 << 20
BYTES_PER_SAMPLE = 65536
ROOM_FOR_FIELDS_BYTES = 65536
ODD_IDS = ("0-17/3", "", " ", "id\twith\ncontrol\u0000characters", "e\u0301 \u00e9", "🚣🏽‍♀️", "שלום", "x" * 1000)
ODD_REFERENCE: dict[str, Json] = {
    "text": "🚣🏽 \u0000 שלום",
    "numbers": [0, -1.5, 1e300, 2**53],
    "nothing": None,
    "nested": {"": [[], {}, [{"deep": [True, None]}]], "ключ.with dots": False},
}


async def scores_one(session: Session) -> str:
    (outcome,) = await session.score(session.samples(["The answer is 42."]))
    if isinstance(outcome, Failure):
        raise Warn(
            f"it fails the sample ({outcome.code}: {outcome.message}); give a reference that it understands: "
            """--reference '{"answer": "42"}'"""
        )
    return f"value {outcome.value:g}" + (f", components {dict(outcome.components)}" if outcome.components else "")


async def keeps_ids(session: Session) -> str:
    samples = session.different(min(NUM_SAMPLES, session.description.max_batch_samples))
    found = await session.score(samples)
    if differ(found, await session.alone(samples)):
        raise Warn("the same samples one by one have other scores; is it random, or does it mix samples up?")
    if differ(found, (await session.score(samples[::-1]))[::-1]):
        raise Warn("the same samples in another order have other scores; is it random, or does it mix samples up?")
    return f"{len(samples)} samples have one result each, together, alone and turned round{unless_all_alike(found)}"


async def takes_odd_ids(session: Session) -> str:
    for sample, odd in zip(session.samples(["text"] * len(ODD_IDS)), ODD_IDS, strict=True):
        await session.score([replace(sample, id=odd)])
    return f"{len(ODD_IDS)} unusual ids come back as they were, character for character"


async def takes_odd_references(session: Session) -> str:
    (sample,) = session.samples(["The answer is 42."])
    odd = replace(sample, reference={**session.reference, "unknown_field": ODD_REFERENCE})
    return f"a reference with an unknown, nested field: {outcome_in_words((await session.score([odd]))[0])}"


async def refuses_duplicate_ids(session: Session) -> str:
    (sample,) = session.samples(["The answer is 42."])
    try:
        response = await session.send([sample, sample])
    except grpc.aio.AioRpcError as error:
        return _refusal(error, session, "two samples with one id")
    found = Counter(result.sample_id for result in response.results)
    if found != {sample.id: 2}:
        raise Violation(
            f"two samples with one id are answered with {len(response.results)} results; refuse the call with "
            "INVALID_ARGUMENT"
        )
    raise Warn("two samples with one id are answered, and nobody can tell which is which; refuse with INVALID_ARGUMENT")


async def answers_no_samples(session: Session) -> str:
    await session.score([])
    return "a call without samples is answered without results"


async def takes_a_full_call(session: Session) -> str:
    limit = session.description.max_batch_samples
    if limit > MOST_SAMPLES_TRIED:
        raise Warn(f"Describe declares {limit} samples a call, more than is tried here; the client will send as many")
    try:
        await session.score(session.different(limit))
    except grpc.aio.AioRpcError as error:
        raise Violation(
            f"{limit} samples in one call, the most that Describe declares: {in_words(error, session.timeout_s)}; or "
            "declare a smaller max_batch_samples"
        ) from error
    return f"{limit} samples in one call, the most that Describe declares, are answered"


async def takes_the_largest_request(session: Session) -> str:
    declared = session.description.max_request_bytes
    num_bytes = min(declared, MOST_BYTES_TRIED) - ROOM_FOR_FIELDS_BYTES
    num_samples = max(1, min(session.description.max_batch_samples, num_bytes // BYTES_PER_SAMPLE))
    text = "x" * (num_bytes // num_samples - ROOM_FOR_FIELDS_BYTES // 16)
    what = (
        f"a request of {num_bytes / 1e6:.3g} MB, where Describe declares {declared} bytes or, by keeping silent, 4 MiB"
    )
    try:
        await session.score(session.samples([text] * num_samples))
    except grpc.aio.AioRpcError as error:
        why = error.details() if error.code() is Status.RESOURCE_EXHAUSTED else in_words(error, session.timeout_s)
        raise Violation(f"{what}: {why}; raise what the server accepts, or declare less") from error
    return f"{what}, is answered"


async def refuses_too_many_samples(session: Session) -> str:
    limit = session.description.max_batch_samples
    if limit > MOST_SAMPLES_TRIED:
        raise Warn(f"Describe declares {limit} samples a call, more than is tried here")
    try:
        await session.score(session.different(limit + 1))
    except grpc.aio.AioRpcError as error:
        return _refusal(error, session, f"one sample more than the {limit} that Describe declares")
    return f"one sample more than the {limit} that Describe declares is answered as well"


def _refusal(error: grpc.aio.AioRpcError, session: Session, what: str) -> str:
    if error.code() is not Status.INVALID_ARGUMENT:
        raise Violation(f"{what}: {in_words(error, session.timeout_s)}; refuse the call with INVALID_ARGUMENT")
    return f"{what}: refused with INVALID_ARGUMENT"
