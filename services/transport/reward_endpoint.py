"""One replica of a reward service as its client sees it: the connection, the description, and its standing.

It must not know samples or outcomes. Invariants: every call has a deadline, and every failure leaves here as one of the
errors of `reward_status`; a replica describes itself anew on each connection.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.contracts.errors import RewardContractError
from services.contracts.records import RewardDescription
from services.protos.reward.v1 import reward_pb2
from services.transport.grpc_security import TOKEN_KEY, bearer, channel_credentials
from services.transport.key_material import KeyMaterial
from services.transport.reflection import list_services
from services.transport.reward_codec import SERVICE_NAME, decode_description
from services.transport.reward_retry import Outage, Refusal
from services.transport.reward_settings import RewardClientConfig
from services.transport.reward_standing import Rank, Standing
from services.transport.reward_status import NotImplementedThere, typed
from services.transport.reward_tally import RewardTally
from services.transport.reward_validation import fault_in_description
from services.transport.tracing import outgoing

Status = grpc.StatusCode

DESCRIBE_S = 10.0
PROBE_PAUSE_S = 0.5
CONNECT_POLL_S = 0.1
CLOSE_S = 1.0

# `round_robin` over the one address of a channel, because it alone keeps the connection up and watches the server's
# health: the channel is READY only while grpc.health.v1 says SERVING. A server without that service counts as healthy.
SERVICE_CONFIG = json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}})


class Endpoint:
    """The replica behind `channel`. Needs a running event loop.

    Args:
        address: what errors call it.
        token: the token that calls carry now, if any.
        find_fault: why no connection comes about, where it can be told; asked until the server has answered once.
    """

    def __init__(
        self,
        address: str,
        channel: Any,  # Any: grpc has no types
        config: RewardClientConfig,
        tally: RewardTally,
        *,
        token: Callable[[], str | None],
        find_fault: Callable[[], Awaitable[str | None]],
    ) -> None:
        self.address = address
        self.standing = Standing(eject_after=config.eject_after, eject_s=config.eject_s)
        self.trouble = "not asked yet"
        self._config = config
        self._tally = tally
        self._channel = channel
        self._methods = {
            method: channel.unary_unary(f"/{SERVICE_NAME}/{method}", response_deserializer=answer.FromString)
            for method, answer in (("Describe", reward_pb2.DescribeResponse), ("Score", reward_pb2.ScoreResponse))
        }
        self._token = token
        self._find_fault = find_fault
        self._has_answered = False
        self._description: RewardDescription | None = None
        self._watch = asyncio.create_task(self._watch_connection(), name=f"connection to {address}")
        self._probe: asyncio.Task[None] | None = None

    @property
    def rank(self) -> Rank:
        """How willingly it is given the next call."""
        connected = self._channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY
        return self.standing.rank if connected else max(self.standing.rank, Rank.UNCONNECTED)

    async def describe(self) -> RewardDescription:
        """What this server says of itself; asked again on each new connection, which may be to another reward."""
        if self._description is None:
            self._description = await self._ask_description()
        return self._description

    async def score(self, request: bytes) -> reward_pb2.ScoreResponse:
        """The server's reply to a `ScoreRequest`, unchecked."""
        response: reward_pb2.ScoreResponse = await self._call("Score", request, self._config.timeout_s)
        self.standing.answered()  # Not for a description: a server may tell it and still hang at every call.
        return response

    async def close(self, *, grace_s: float | None = None) -> None:
        """Close the connection; calls under way have `grace_s` to end."""
        if self._probe is not None:
            self._probe.cancel()
        await self._channel.close(grace_s)
        await asyncio.wait([self._watch], timeout=CLOSE_S)  # It ends with the channel.

    async def _ask_description(self) -> RewardDescription:
        timeout_s = min(DESCRIBE_S, self._config.timeout_s)
        try:
            message = await self._call("Describe", b"", timeout_s)  # A request without fields.
        except NotImplementedThere as error:
            raise RewardContractError(f"{error}; {await self._what_it_has(timeout_s)}") from error
        except Outage as error:
            fault = None if self._has_answered else await self._find_fault()
            if fault is None:
                raise
            raise Refusal(f"{self.address} {fault}") from error
        description = decode_description(message)
        fault = fault_in_description(description)
        if fault is not None:
            raise RewardContractError(f"{self.address} describes itself wrongly: {fault}")
        return description

    async def _what_it_has(self, timeout_s: float) -> str:
        try:
            names = await list_services(self._channel, timeout_s=timeout_s, metadata=self._metadata())
        except grpc.aio.AioRpcError:
            return "nor does it tell what it has (server reflection); is another service running there?"
        own = [name for name in names if not name.startswith("grpc.")]
        return f"it has {', '.join(own) or 'no service of its own'}, and {SERVICE_NAME} is wanted"

    async def _call(self, method: str, request: bytes, timeout_s: float) -> Any:  # Any: the reply of either method
        with self.standing.call():
            try:
                response = await self._methods[method](request, timeout=timeout_s, metadata=self._metadata())
            except grpc.aio.AioRpcError as error:
                failure = typed(
                    error,
                    address=self.address,
                    method=method,
                    num_bytes=len(request),
                    timeout_s=timeout_s,
                    config=self._config,
                )
                self.trouble = str(failure)
                self._note_failure(error.code())
                raise failure from error
        if response is None:  # gRPC's word for bytes that it could not read as the reply.
            raise RewardContractError(f"{self.address} answered {method} with bytes that are no {method}Response")
        self._has_answered = True
        return response

    def _metadata(self) -> list[tuple[str, str]]:
        token = self._token()
        return [*outgoing(), *([(TOKEN_KEY, bearer(token))] if token else [])]

    def _note_failure(self, code: grpc.StatusCode) -> None:
        if code is Status.DEADLINE_EXCEEDED:
            self.standing.missed()
        elif code in (Status.UNAVAILABLE, Status.UNAUTHENTICATED):
            self.standing.eject()
        if self.standing.wants_probe and (self._probe is None or self._probe.done()):
            self._tally.num_ejections += 1
            self._probe = asyncio.create_task(self._probe_until_alive(), name=f"probe of {self.address}")

    async def _probe_until_alive(self) -> None:
        """Ask for its health until it answers; a frozen server answers as soon as it thaws."""
        stub = health_pb2_grpc.HealthStub(self._channel)
        while self.standing.wants_probe:
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=self._config.timeout_s)
                is_alive = answer.status == health_pb2.HealthCheckResponse.SERVING
            except grpc.aio.AioRpcError as error:
                is_alive = error.code() is Status.UNIMPLEMENTED
            if is_alive:
                self.standing.probed()
            else:
                await asyncio.sleep(PROBE_PAUSE_S)

    async def _watch_connection(self) -> None:
        """Forget the description with each connection that ends, for as long as the channel is open."""
        state = self._channel.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.SHUTDOWN:
            if state is grpc.ChannelConnectivity.READY:
                await self._channel.wait_for_state_change(state)
                self._description = None
            else:
                self._description = None
                # gRPC ends a wait for another state when that changes, and not when the channel is closed.
                await asyncio.sleep(CONNECT_POLL_S)
            state = self._channel.get_state(try_to_connect=True)


def open_channel(
    target: str, *, authority: str, config: RewardClientConfig, material: KeyMaterial | None
) -> Any:  # Any: grpc has no types
    """A channel to one socket address; nothing is connected yet.

    Retries are ours alone, because they go to another replica; no proxy stands between, and a server that comes back is
    found within two seconds.
    """
    options = [
        ("grpc.service_config", SERVICE_CONFIG),
        ("grpc.default_authority", authority),
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", config.max_response_bytes),
    ]
    if material is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, channel_credentials(material), options=options)
