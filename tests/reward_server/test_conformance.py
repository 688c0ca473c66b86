"""The checks of `trireme reward check`: a fair service passes all, and a broken thing is named by the check for it."""

from collections.abc import Callable

import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2

from services.contracts.errors import UserError
from services.transport.reward_conformance import CHECKS, Finding, check_service
from tests.reward_server.broken_services import (
    Abrupt,
    Immortal,
    Overrun,
    Rude,
    SharedScore,
    SharedState,
    Silent,
    Slow,
    Unread,
    Wedged,
    answering,
    by_place,
    counting_utf16,
    describing,
    failing_on,
    merging,
    mirrored,
    of_two_versions,
    refusing,
    renamed,
    rotated,
    scored_by,
    strict_about_fields,
    unguarded,
    valued,
    with_attributes,
    without,
)
from tests.reward_server.conforming import MAX_SAMPLES, Conforming, Request, Response, running
from tests.reward_server.serving import response, results

TIMEOUT_S = 1.0


async def finding_of(service: Conforming, check: str) -> Finding:
    """What one check finds, and those without which there is none."""
    skip = CHECKS.keys() - {"reachable", "describe", check}
    async with running(service) as (address, stop):
        found = check_service(address, reference={}, timeout_s=TIMEOUT_S, skip=skip, stop=stop)
        return {finding.check: finding async for finding in found}[check]


async def test_a_service_that_keeps_the_contract_passes_every_check() -> None:
    async with running(Slow()) as (address, stop):
        found = [finding async for finding in check_service(address, reference={}, timeout_s=5.0, stop=stop)]
    assert [finding for finding in found if finding.verdict != "passed"] == []
    assert [finding.check for finding in found] == list(CHECKS)


async def test_a_call_that_waited_unread_and_is_turned_away_was_not_dropped() -> None:
    finding = await finding_of(Unread(), "drain")
    assert finding.verdict == "passed", finding.text


async def test_a_check_says_where_equal_scores_would_hide_a_fault() -> None:
    for check in ("order and ids", "calls at once"):
        assert "all alike (value 0.5), so it would not show" in (await finding_of(Conforming(), check)).text


async def test_scores_that_change_a_little_with_the_batch_are_no_fault() -> None:
    def answer(request: Request) -> Response:
        answer = response(request, results(request))
        for sample, result in zip(request.samples, answer.results, strict=True):
            result.reward.value = scored_by(sample.completion) + 1e-3 * len(request.samples)
        return answer

    assert (await finding_of(answering(answer), "order and ids")).verdict == "passed"


async def test_a_check_that_is_skipped_or_cannot_be_made_is_told_and_an_unknown_one_is_refused() -> None:
    async with running(Conforming()) as (address, _):
        found = [finding async for finding in check_service(address, reference={}, skip=["overload"])]
        with pytest.raises(UserError, match=r"no checks \['overlord'\] to skip; there are reachable, "):
            await anext(check_service(address, reference={}, skip=["overlord"]))
    assert [finding.check for finding in found] == list(CHECKS)
    not_checked = {finding.check: finding.text for finding in found if finding.verdict == "not checked"}
    assert not_checked == {
        "overload": "left out, as asked",
        "drain": "give --stop COMMAND, such as --stop 'kill 4711'",
    }


async def test_nothing_is_found_to_be_nothing() -> None:
    found = [finding async for finding in check_service("127.0.0.1:1", reference={}, timeout_s=0.2)]
    assert [(finding.check, finding.verdict) for finding in found] == [("reachable", "failed")]


BROKEN: dict[str, tuple[Callable[[], Conforming], str, str, str]] = {
    "range the wrong way round": (
        lambda: describing(minimum=1.0, maximum=0.0), "describe", "failed", "the minimum may not exceed the maximum"),
    "name with a space": (lambda: describing(name="my reward"), "describe", "failed", "letters, digits and"),
    "health not set": (
        lambda: with_attributes(status=health_pb2.HealthCheckResponse.NOT_SERVING),
        "health", "failed", "NOT_SERVING, while the service answers; set SERVING"),
    "not reflected": (lambda: with_attributes(reflected=()), "reflection", "warning", "does not list"),
    "out of range": (lambda: valued(1.5), "one sample", "failed", "1.5 lies outside the declared range"),
    "not a number": (lambda: valued(float("nan")), "one sample", "failed", "the value is nan, which is not finite"),
    "neither reward nor failure": (
        lambda: answering(lambda request: without(request, "reward")), "one sample", "failed", "set one of the two"),
    "no request id": (
        lambda: answering(lambda request: Response(results=results(request))),
        "one sample", "failed", "copy request_id from the request"),
    "last result missing": (
        lambda: answering(lambda request: response(request, results(request)[: max(1, len(request.samples) - 1)])),
        "order and ids", "failed", "7 results for 8 samples (missing: 'sample/7'); answer each sample"),
    "result twice": (
        lambda: answering(lambda request: response(request, results(request) * 2)),
        "one sample", "failed", "given more than once: 'sample/0'"),
    "result of another": (
        lambda: answering(lambda request: renamed(request, lambda name: name + "?")),
        "one sample", "failed", "foreign: 'sample/0?'"),
    "samples mixed up": (lambda: answering(by_place), "order and ids", "warning", "does it mix samples up?"),
    "scores mirrored": (lambda: answering(mirrored), "order and ids", "warning", "one by one have other scores"),
    "scores of neighbours": (lambda: answering(rotated), "order and ids", "warning", "one by one have other scores"),
    "two versions": (lambda: answering(of_two_versions), "order and ids", "failed", "are of versions v0, v1; score"),
    "ids made tidy": (
        lambda: answering(lambda request: renamed(request, str.strip)), "odd ids", "failed", "missing: ' '"),
    "strict about the reference": (
        lambda: answering(strict_about_fields), "odd references", "failed", "answer a sample that cannot be scored"),
    "duplicates merged": (
        lambda: with_attributes(refuse=unguarded().refuse, answer=answering(merging).answer),
        "duplicate ids", "failed", "two samples with one id are answered with 1 results; refuse the call with INVALID"),
    "duplicates answered": (unguarded, "duplicate ids", "warning", "nobody can tell which is which"),
    "no samples refused": (
        lambda: refusing(lambda request: not request.samples, StatusCode.INVALID_ARGUMENT),
        "no samples", "failed", "the whole call failed with INVALID_ARGUMENT (scripted)"),
    "full call refused": (
        lambda: refusing(lambda request: len(request.samples) == MAX_SAMPLES, StatusCode.INVALID_ARGUMENT),
        "full call", "failed", "or declare a smaller max_batch_samples"),
    "less than it declares": (
        lambda: with_attributes(max_receive_bytes=2_000_000), "largest request", "failed", "or declare less"),
    "too many crash it": (
        lambda: refusing(lambda request: len(request.samples) > MAX_SAMPLES, StatusCode.INTERNAL),
        "too many samples", "failed", "refuse the call with INVALID_ARGUMENT"),
    "empty completion": (
        lambda: failing_on(lambda text: not text), "empty completion", "failed", "UNKNOWN (Unexpected"),
    "long completion": (
        lambda: with_attributes(max_receive_bytes=100_000), "long completion", "failed", "accept 4 MiB at the least"),
    "steps in UTF-16": (
        lambda: answering(counting_utf16), "unicode", "failed", "astral characters: sample 'sample/0': a step covers"),
    "combining characters": (
        lambda: failing_on(lambda text: "\u0336" in text), "unicode", "failed", "combining characters: the whole call"),
    "NUL": (lambda: failing_on(lambda text: "\0" in text), "control characters", "failed", "NUL: the whole call"),
    "too large crashes it": (
        lambda: with_attributes(max_receive_bytes=-1, answer=failing_on(lambda text: len(text) > 1e7).answer),
        "request too large", "failed", "a request of 20 MB: the whole call failed with UNKNOWN"),
    "calls share state": (SharedState, "calls at once", "failed", "copy request_id"),
    "calls share scores": (SharedScore, "calls at once", "warning", "calls at once have other scores than one by one"),
    "wedged by a deadline": (Wedged, "deadline", "failed", "leave off the work for a call that was given up"),
    "overload is a crash": (
        lambda: Overrun(StatusCode.INTERNAL), "overload", "failed", "failed with INTERNAL; refuse what is"),
    "overload hangs": (lambda: Overrun(None), "overload", "warning", "neither answered nor refused within 1 s"),
    "calls cut at the end": (Abrupt, "drain", "failed", "were dropped ("),
    "calls refused wrongly at the end": (Rude, "drain", "failed", "failed with INTERNAL (scripted); turn"),
    "it does not end": (Immortal, "drain", "failed", "it still runs 1 s after it was told to end; end on SIGTERM"),
    "it ends without a word": (Silent, "drain", "warning", "its health never said NOT_SERVING"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
async def test_what_is_broken_is_named_by_its_check(name: str) -> None:
    make, check, verdict, words = BROKEN[name]
    finding = await finding_of(make(), check)
    assert finding.verdict == verdict, finding.text
    assert words in finding.text
