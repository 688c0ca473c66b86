"""TLS and tokens as gRPC wants them, for every service of Trireme and its clients.

It must not know where certificates and tokens come from: see `secret_files`. Invariants: a token is compared in
constant time; a server shows each new connection the certificate that is in its files then.
"""

import hmac
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from services.transport.key_material import KeyMaterial, Reloaded

logger = logging.getLogger(__name__)

TOKEN_KEY = "authorization"
"""Metadata key of the token; its value is `bearer(token)`."""
HEALTH_METHODS = "/grpc.health.v1.Health/"


def bearer(token: str) -> str:
    return f"Bearer {token}"


class TokenCheck(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Lets through the calls that carry a token, whatever they ask.

    Args:
        tokens: those that are accepted now; asked at each call.
        open_methods: prefix of methods that need none.
    """

    def __init__(self, tokens: Callable[[], Sequence[str]], *, open_methods: str | None = None) -> None:
        self._tokens = tokens
        self._open_methods = open_methods

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:  # Any: grpc
        if self._open_methods and details.method.startswith(self._open_methods):
            return await continuation(details)
        given = dict(details.invocation_metadata).get(TOKEN_KEY, "")
        if is_accepted(given if isinstance(given, str) else "", self._tokens()):
            return await continuation(details)
        logger.warning("refused a call of %s without a right token", details.method)
        return grpc.unary_unary_rpc_method_handler(_refuse)


def token_senders(token: str) -> list[Any]:  # Any: grpc has no types
    """Interceptors that have every call of a channel carry the token."""
    return [_UnaryTokenSender(token), _StreamTokenSender(token)]


class _UnaryTokenSender(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]  # grpc has no types
    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:  # Any: grpc
        return await continuation(_with_token(details, self._token), request)


class _StreamTokenSender(grpc.aio.StreamStreamClientInterceptor):  # type: ignore[misc]  # grpc has no types
    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:  # Any: grpc
        return await continuation(_with_token(details, self._token), requests)


def _with_token(details: Any, token: str) -> Any:  # Any: grpc
    return details._replace(metadata=grpc.aio.Metadata(*(details.metadata or ()), (TOKEN_KEY, bearer(token))))


def is_accepted(given: str, tokens: Sequence[str]) -> bool:
    """Whether the metadata value is one of the tokens'; how long that takes does not tell how much of one was right."""
    same = [hmac.compare_digest(given.encode(), bearer(token).encode()) for token in tokens]
    return any(same)


def server_credentials(material: Reloaded[KeyMaterial]) -> Any:  # Any: grpc has no types
    """Credentials that follow the files; callers must show a certificate where authorities for them are given."""

    def configuration() -> Any:  # Any: grpc has no types
        now = material.get()
        return grpc.ssl_server_certificate_configuration(
            [(now.key, now.certificate)], root_certificates=now.authorities
        )

    asks_for_certificate = material.get().authorities is not None
    return grpc.dynamic_ssl_server_credentials(
        configuration(), configuration, require_client_authentication=asks_for_certificate
    )


def channel_credentials(material: KeyMaterial) -> Any:  # Any: grpc has no types
    return grpc.ssl_channel_credentials(
        root_certificates=material.authorities, private_key=material.key, certificate_chain=material.certificate
    )


async def _refuse(request: object, context: Any) -> None:  # Any: grpc.aio.ServicerContext, which has no types
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the call carries no token that this server knows")
