"""What the gRPC status of a call that failed means to the client of a reward service.

It must not make calls. Invariant: every status becomes one of `Outage`, `Refusal`, `CallFault` and
`RewardContractError`, in words that begin with the server's address and name the setting to change where there is one.
"""

import re

import grpc

from services.contracts.errors import RewardContractError
from services.transport.reward_codec import SERVICE_NAME
from services.transport.reward_retry import CallFault, Outage, Refusal
from services.transport.reward_settings import RewardClientConfig

Status = grpc.StatusCode

OUTAGE_CODES = (Status.UNAVAILABLE, Status.RESOURCE_EXHAUSTED, Status.CANCELLED)
CALL_FAULT_CODES = (Status.INTERNAL, Status.UNKNOWN, Status.ABORTED)
TOO_LARGE = re.compile(r"(larger than|exceeds) max", re.IGNORECASE)
TOO_LARGE_HERE = re.compile("CLIENT:|Decompressed")


class NotImplementedThere(RewardContractError):
    """The server has no such service, or not this version of it."""


def typed(
    error: grpc.aio.AioRpcError,
    *,
    address: str,
    method: str,
    num_bytes: int,
    timeout_s: float,
    config: RewardClientConfig,
) -> Exception:
    """The failure as the client's error.

    Args:
        num_bytes: size of the request.
        timeout_s: the deadline that the call had.
    """
    code, details = error.code(), error.details() or ""
    if code is Status.DEADLINE_EXCEEDED:
        return Outage(f"{address} did not answer {method} within {timeout_s:g} s (timeout_s)")
    if code is Status.RESOURCE_EXHAUSTED and TOO_LARGE.search(details):
        return RewardContractError(f"{address} {_too_large(method, num_bytes, details, config)}")
    if code is Status.UNIMPLEMENTED:
        return NotImplementedThere(f"{address} does not implement {SERVICE_NAME}/{method} ({details})")
    if code is Status.UNAUTHENTICATED:
        return Refusal(f"{address} {_fault_in_token(config)}")
    text = f"{address} answered {method} with {code.name}: {details}"
    if code in OUTAGE_CODES:
        return Outage(text)
    return CallFault(text) if code in CALL_FAULT_CODES else RewardContractError(text)


def _too_large(method: str, num_bytes: int, details: str, config: RewardClientConfig) -> str:
    if TOO_LARGE_HERE.search(details):  # Requests are not compressed, so what was decompressed is the answer.
        limit = f"{config.section}max_response_bytes ({config.max_response_bytes})"
        return f"answered {method} with more than {limit}: {details}"
    return (
        f"does not take a {method} request of {num_bytes} bytes, although it declares that it does: {details}; lower "
        f"{config.section}max_request_bytes ({config.max_request_bytes})"
    )


def _fault_in_token(config: RewardClientConfig) -> str:
    for name in ("token_file", "token_variable"):
        if getattr(config, name) is not None:
            return f"does not know the token that {config.section}{name} leads to"
    return f"asks for a token; set {config.section}token_file or {config.section}token_variable"
