"""One reward server as its client sees it: the connection, the description, and whether to pass it over for now.

The only file of the client that knows gRPC; it must not know samples or outcomes. Invariant: every call has a deadline
and every failure leaves here as `Outage`, `CallFault` or `RewardContractError`, with the address in its text.
"""

import re
import time
from typing import Any

import grpc

from services.contracts.errors import RewardContractError
from services.contracts.records import RewardDescription
from services.protos.reward.v1 import reward_pb2, reward_pb2_grpc
from services.transport.reward_codec import SERVICE_NAME, decode_description
from services.transport.reward_retry import CallFault, Outage
from services.transport.reward_settings import RewardClientConfig
from services.transport.reward_validation import fault_in_description

Status = grpc.StatusCode

OUTAGE_CODES = (Status.UNAVAILABLE, Status.RESOURCE_EXHAUSTED, Status.CANCELLED)
CALL_FAULT_CODES = (Status.INTERNAL, Status.UNKNOWN, Status.ABORTED)
TOO_LARGE = re.compile(r"(larger than|exceeds) max", re.IGNORECASE)


class Endpoint:
    """The server at `address`."""

    def __init__(self, address: str, config: RewardClientConfig) -> None:
        self.address = address
        self.passed_over_until = float("-inf")
        self._config = config
        self._channel: Any = None  # Any: grpc has no types
        self._description: RewardDescription | None = None
        self._num_missed = 0

    async def describe(self) -> RewardDescription:
        """What this server says of itself; asked again on each new connection, which may be to another reward."""
        channel = self._connection()
        if self._description is None or channel.get_state() is not grpc.ChannelConnectivity.READY:
            description = decode_description(await self._call("Describe", reward_pb2.DescribeRequest()))
            fault = fault_in_description(description)
            if fault is not None:
                raise RewardContractError(f"{self.address} describes itself wrongly: {fault}")
            self._description = description
        return self._description

    async def score(self, request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        """The server's reply, unchecked."""
        response: reward_pb2.ScoreResponse = await self._call("Score", request)
        return response

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()

    async def _call(self, method: str, request: Any) -> Any:  # Any: the messages of either method
        stub = reward_pb2_grpc.RewardServiceStub(self._connection())
        try:
            response = await getattr(stub, method)(request, timeout=self._config.timeout_s)
        except grpc.aio.AioRpcError as error:
            self._note_failure(error.code())
            raise self._typed(method, error, request.ByteSize()) from error
        self._num_missed = 0
        self.passed_over_until = float("-inf")
        return response

    def _connection(self) -> Any:  # Any: grpc has no types
        if self._channel is None:  # Not earlier: a channel belongs to the event loop that runs when it is made.
            self._channel = grpc.aio.insecure_channel(self.address, options=channel_options(self._config))
        return self._channel

    def _note_failure(self, code: grpc.StatusCode) -> None:
        self._num_missed = self._num_missed + 1 if code is Status.DEADLINE_EXCEEDED else 0
        if code is Status.UNAVAILABLE or self._num_missed >= self._config.eject_after:
            self.passed_over_until = time.monotonic() + self._config.eject_s

    def _typed(self, method: str, error: grpc.aio.AioRpcError, num_bytes: int) -> Exception:
        code, details = error.code(), error.details() or ""
        if code is Status.DEADLINE_EXCEEDED:
            return Outage(f"{self.address} did not answer {method} within {self._config.timeout_s:g} s (timeout_s)")
        if code is Status.RESOURCE_EXHAUSTED and TOO_LARGE.search(details):
            return RewardContractError(
                f"{self.address} does not take a {method} request of {num_bytes} bytes, or its answer is too large: "
                f"{details}; lower reward.max_request_bytes ({self._config.max_request_bytes})"
            )
        if code is Status.UNIMPLEMENTED:
            return RewardContractError(
                f"{self.address} does not implement {SERVICE_NAME}/{method} ({details}); is a reward server of this "
                "contract's version running there?"
            )
        text = f"{self.address} answered {method} with {code.name}: {details}"
        if code in OUTAGE_CODES:
            return Outage(text)
        return CallFault(text) if code in CALL_FAULT_CODES else RewardContractError(text)


def channel_options(config: RewardClientConfig) -> list[tuple[str, int]]:
    """Retries are ours alone, no proxy stands between, and a server that comes back is found within two seconds."""
    return [
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", config.max_response_bytes),
    ]
