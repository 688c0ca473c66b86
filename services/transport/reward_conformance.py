"""Whether a running reward service keeps the contract; each check says in plain words what it found and what to do.

It must not know whose service it is, nor print. Invariant: a check passes only on an answer that the client would
accept; a `Failure` of a sample is such an answer, because the service may need references that no check can invent.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import grpc

from services.contracts.errors import UserError
from services.contracts.records import Json
from services.transport.grpc_security import channel_credentials, token_senders
from services.transport.reward_checks import answers, drain, identity, load, texts
from services.transport.reward_checks.session import Session, Violation, Warn, in_words
from services.transport.secret_files import client_material, tokens
from services.transport.security import ClientSecurity
from services.transport.tls_diagnosis import find_tls_fault

MAX_MESSAGE_BYTES = 64_000_000
NO_SECURITY = ClientSecurity()

Verdict = Literal["passed", "warning", "failed", "not checked"]
Check: TypeAlias = Callable[[Session], Awaitable[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check found, or why it did not look."""

    check: str
    verdict: Verdict
    text: str


async def check_service(
    address: str,
    *,
    reference: Mapping[str, Json],
    timeout_s: float = 10.0,
    skip: Collection[str] = (),
    stop: Callable[[], Awaitable[None]] | None = None,
    security: ClientSecurity = NO_SECURITY,
) -> AsyncIterator[Finding]:
    """Run the checks; after one that leaves nothing to test (no answer, no description) the rest is not told of.

    Args:
        reference: sent with every sample.
        timeout_s: deadline of each call, in seconds.
        skip: names of checks to leave out.
        stop: tells the service to end; without it, its drain is not checked.
        security: how the service is known, and how calls prove themselves.

    Raises:
        UserError: a name in `skip` is no check's, or a file of certificates or tokens cannot be used.
    """
    unknown = sorted(set(skip) - CHECKS.keys())
    if unknown:
        raise UserError(f"there are no checks {unknown} to skip; there are {', '.join(CHECKS)}")
    async with _channel(address, security) as channel:
        session = Session(
            address=address,
            channel=channel,
            reference=reference,
            timeout_s=timeout_s,
            stop=stop,
            find_fault=partial(find_tls_fault, address, security),
        )
        for name, check in CHECKS.items():
            left_out = _left_out(check, is_skipped=name in skip, can_stop=stop is not None)
            if left_out:
                yield Finding(check=name, verdict="not checked", text=left_out)
                continue
            finding = await _run(name, check, session)
            yield finding
            if finding.verdict == "failed" and check in INDISPENSABLE:
                return


def _left_out(check: Check, *, is_skipped: bool, can_stop: bool) -> str:
    """Why the check is not made; empty where it is."""
    if is_skipped:
        return "left out, as asked"
    return "" if can_stop or check is not drain.drains else "give --stop COMMAND, such as --stop 'kill 4711'"


async def _run(name: str, check: Check, session: Session) -> Finding:
    try:
        return Finding(check=name, verdict="passed", text=await check(session))
    except Warn as warning:
        return Finding(check=name, verdict="warning", text=str(warning))
    except Violation as violation:
        return Finding(check=name, verdict="failed", text=str(violation))
    except grpc.aio.AioRpcError as error:
        return Finding(check=name, verdict="failed", text=in_words(error, session.timeout_s))


def _channel(address: str, security: ClientSecurity) -> Any:  # Any: grpc has no types
    options: list[tuple[str, int | str]] = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ]
    if security.tls_server_name is not None:
        options.append(("grpc.default_authority", security.tls_server_name))
    material, token = client_material(security), tokens(security)
    interceptors = token_senders(token.get()[0]) if token else []
    if material is None:
        return grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)
    credentials = channel_credentials(material.get())
    return grpc.aio.secure_channel(address, credentials, options=options, interceptors=interceptors)


INDISPENSABLE = (identity.reachable, identity.describes_itself)
CHECKS: Mapping[str, Check] = {
    "reachable": identity.reachable,
    "describe": identity.describes_itself,
    "health": identity.tells_its_health,
    "reflection": identity.reflects,
    "one sample": answers.scores_one,
    "order and ids": answers.keeps_ids,
    "odd ids": answers.takes_odd_ids,
    "odd references": answers.takes_odd_references,
    "duplicate ids": answers.refuses_duplicate_ids,
    "no samples": answers.answers_no_samples,
    "full call": answers.takes_a_full_call,
    "largest request": answers.takes_the_largest_request,
    "too many samples": answers.refuses_too_many_samples,
    "empty completion": texts.takes_empty_completion,
    "long completion": texts.takes_long_completion,
    "unicode": texts.takes_unicode,
    "control characters": texts.takes_control_characters,
    "request too large": texts.refuses_what_is_too_large,
    "calls at once": load.keeps_calls_apart,
    "deadline": load.survives_deadlines,
    "overload": load.refuses_overload_honestly,
    "drain": drain.drains,
}
