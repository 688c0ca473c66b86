"""From the bytes of a call to the servicer and back.

It must not know what is answered. Invariant: bytes that are no request are refused with INVALID_ARGUMENT,
as the caller's fault; gRPC by itself would say UNKNOWN, which a client tries again.
"""

from typing import Any

import grpc
from google.protobuf.message import DecodeError

from services.protos.reward.v1 import reward_pb2, reward_pb2_grpc
from services.transport.reward_codec import SERVICE_NAME

Call = Any  # Any: grpc.aio.ServicerContext, which has no types


def handlers_of(servicer: reward_pb2_grpc.RewardServiceServicer) -> Any:  # Any: grpc has no types
    """The methods of the contract, for a server."""

    async def score(request: reward_pb2.ScoreRequest | DecodeError, call: Call) -> reward_pb2.ScoreResponse:
        if isinstance(request, DecodeError):
            await call.abort(grpc.StatusCode.INVALID_ARGUMENT, f"these bytes are no request: {request}")
        response: reward_pb2.ScoreResponse = await servicer.Score(request, call)
        return response

    methods = {
        "Describe": grpc.unary_unary_rpc_method_handler(
            servicer.Describe,
            request_deserializer=lambda data: reward_pb2.DescribeRequest(),  # It has no fields to read.
            response_serializer=reward_pb2.DescribeResponse.SerializeToString,
        ),
        "Score": grpc.unary_unary_rpc_method_handler(
            score,
            request_deserializer=read_request,
            response_serializer=reward_pb2.ScoreResponse.SerializeToString,
        ),
    }
    return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)


def read_request(data: bytes) -> reward_pb2.ScoreRequest | DecodeError:
    """The request, or why these bytes are none."""
    try:
        return reward_pb2.ScoreRequest.FromString(data)
    except DecodeError as error:
        return error
