"""Each call to a reward server as metrics, a span and lines of the log, around the servicer that answers it.

It must not change what is answered. Invariant: a call is noted once, when it ends, whichever way that is.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.trace import SpanKind

from reward_server.logs import CURRENT_CALL
from services.protos.reward.v1 import reward_pb2, reward_pb2_grpc
from services.transport.reward_codec import SERVICE_NAME
from services.transport.tracing import ids_in, incoming, is_recorded, span

if TYPE_CHECKING:  # Prometheus's client takes long to import, and few servers need it.
    from reward_server.metrics import RewardMetrics

logger = logging.getLogger(__name__)

NOTHING = nullcontext()
Call = Any  # Any: grpc.aio.ServicerContext, which has no types


class ObservedServicer(reward_pb2_grpc.RewardServiceServicer):  # type: ignore[misc]  # generated, without types
    """Answers with `servicer`.

    Args:
        metrics: where calls and samples are counted; None counts nothing.
    """

    def __init__(self, servicer: reward_pb2_grpc.RewardServiceServicer, metrics: "RewardMetrics | None") -> None:
        self._servicer = servicer
        self._metrics = metrics
        self._is_recorded = is_recorded()

    async def Describe(self, request: reward_pb2.DescribeRequest, call: Call) -> reward_pb2.DescribeResponse:  # noqa: N802 - named by the contract
        description: reward_pb2.DescribeResponse = await self._servicer.Describe(request, call)
        return description

    async def Score(self, request: reward_pb2.ScoreRequest, call: Call) -> reward_pb2.ScoreResponse:  # noqa: N802 - named by the contract
        with self._metrics.in_flight.track_inprogress() if self._metrics else NOTHING:
            if not self._is_recorded:
                CURRENT_CALL.set(partial(ids_of, request, call))
                return await self._observed(request, call)
            caller = incoming(call.invocation_metadata())
            with span(f"{SERVICE_NAME}/Score", {"rpc.system": "grpc"}, parent=caller, kind=SpanKind.SERVER):
                ids = {"request_id": request.request_id, **ids_in()}
                CURRENT_CALL.set(lambda: ids)
                return await self._observed(request, call)

    async def _observed(self, request: reward_pb2.ScoreRequest, call: Call) -> reward_pb2.ScoreResponse:
        began = time.perf_counter()
        try:
            response: reward_pb2.ScoreResponse = await self._servicer.Score(request, call)
        except BaseException as error:
            self._note(request, time.perf_counter() - began, status_of(error, call), call.details())
            raise
        self._note(request, time.perf_counter() - began, "OK", "")
        self._note_samples(response.results)
        return response

    def _note(self, request: reward_pb2.ScoreRequest, seconds: float, code: str, details: str | None) -> None:
        num_samples = len(request.samples)
        if self._metrics:
            self._metrics.call_ended(code, seconds=seconds, num_samples=num_samples)
        level = logging.DEBUG if code == "OK" else logging.INFO
        if logger.isEnabledFor(level):
            facts = {"code": code, "num_samples": num_samples, "seconds": round(seconds, 6)}
            why = f": {details}" if details else ""
            logger.log(level, "%d samples in %.3f s: %s%s", num_samples, seconds, code, why, extra={"facts": facts})

    def _note_samples(self, results: Sequence[reward_pb2.Result]) -> None:
        failures = [result for result in results if result.HasField("failure")]
        if failures:
            first = failures[0]
            logger.warning(
                "%d of %d samples failed, such as %r: %s",
                len(failures),
                len(results),
                first.sample_id,
                first.failure.message,
            )
        if self._metrics:
            self._metrics.samples_answered(map(outcome_and_version, results))


def ids_of(request: reward_pb2.ScoreRequest, call: Call) -> Mapping[str, str]:
    """Ids of a call of which no span is recorded here."""
    return {"request_id": request.request_id, **ids_in(incoming(call.invocation_metadata()))}


def status_of(error: BaseException, call: Call) -> str:
    """Name of the status with which a call ends for `error`."""
    if isinstance(error, grpc.aio.AbortError):
        return str(call.code().name)
    return "CANCELLED" if isinstance(error, asyncio.CancelledError) else "UNKNOWN"


def outcome_and_version(result: reward_pb2.Result) -> tuple[str, str]:
    """How metrics count a sample."""
    if result.HasField("failure"):
        return reward_pb2.FailureCode.Name(result.failure.code).removeprefix("FAILURE_CODE_").lower(), ""
    return "reward", result.reward.version
