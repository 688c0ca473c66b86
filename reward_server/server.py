"""The gRPC server of a reward: trireme.reward.v1, grpc.health.v1 and reflection.

It must not know how samples are scored. Invariants: a call that was accepted is answered in full and by one version of
the reward, or its caller gets a status that says why; after `drain` began nothing new is accepted, and calls under way
have `drain_s` to end.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from reward_server.batcher import Batcher, Overloaded
from reward_server.config import READY_PREFIX, RewardServerConfig
from reward_server.observation import ObservedServicer
from reward_server.scorer import Scorer
from reward_server.wire import handlers_of
from services.contracts.errors import UserError
from services.contracts.records import Failure, FailureCode, Reward, RewardSample, reward_versions
from services.protos.reward.v1 import reward_pb2, reward_pb2_grpc
from services.transport.grpc_security import HEALTH_METHODS, TokenCheck, server_credentials
from services.transport.reward_codec import SERVICE_NAME, decode_sample, encode_description, write_result
from services.transport.secret_files import server_material, tokens

if TYPE_CHECKING:  # Imported where it is wanted: Prometheus's client takes long.
    from reward_server.metrics import RewardMetrics

logger = logging.getLogger(__name__)

MAX_VERSION_CHANGES = 5
MAX_PROBES = 16
Context = Any  # Any: grpc.aio.ServicerContext, which has no types


class RewardServicer(reward_pb2_grpc.RewardServiceServicer):  # type: ignore[misc]  # generated, without types
    """The two methods of the contract."""

    def __init__(self, scorer: Scorer, config: RewardServerConfig) -> None:
        self._scorer = scorer
        self._max_samples_per_call = config.max_samples_per_call
        self._max_request_bytes = config.max_message_bytes
        self.batcher = Batcher(
            scorer,
            max_batch_cost=config.max_batch_samples,
            max_wait_s=config.max_wait_s,
            max_pending_samples=config.max_pending_samples,
            max_running=config.num_threads,
        )
        self._num_calls = 0
        self._no_calls = asyncio.Event()
        self._no_calls.set()
        self._draining = False

    async def Describe(self, request: reward_pb2.DescribeRequest, context: Context) -> reward_pb2.DescribeResponse:  # noqa: N802 - named by the contract
        # Asked for anew each time: a part may be another server's, which says what it is when this one starts.
        return encode_description(
            replace(
                self._scorer.description,
                max_batch_samples=self._max_samples_per_call,
                max_request_bytes=self._max_request_bytes,
            )
        )

    async def Score(self, request: reward_pb2.ScoreRequest, context: Context) -> reward_pb2.ScoreResponse:  # noqa: N802 - named by the contract
        if self._draining:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this server is shutting down; use another")
        fault = fault_in_request(request, max_samples=self._max_samples_per_call)
        if fault is not None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, fault)
        self._begin(context)
        try:
            outcomes = await self._outcomes(request.samples)
        except Overloaded as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        response = reward_pb2.ScoreResponse(request_id=request.request_id)
        results = response.results
        for sample, outcome in zip(request.samples, outcomes, strict=True):
            write_result(results.add(), sample.id, outcome)
        return response

    async def finish(self, timeout_s: float) -> None:
        """Accept nothing more, and wait until calls under way have ended or the time is up."""
        self._draining = True
        if not self._num_calls:
            return
        try:
            await asyncio.wait_for(self._no_calls.wait(), timeout_s)
        except TimeoutError:
            logger.warning("%d calls were still under way after %g s (drain_s)", self._num_calls, timeout_s)

    async def _outcomes(self, messages: Sequence[reward_pb2.Sample]) -> list[Reward | Failure]:
        decoded = [decoded_or_failure(message) for message in messages]
        scored = iter(await self._of_one_version([one for one in decoded if isinstance(one, RewardSample)]))
        return [next(scored) if isinstance(one, RewardSample) else one for one in decoded]

    async def _of_one_version(self, samples: Sequence[RewardSample]) -> list[Reward | Failure]:
        """Outcomes of the samples, which are scored once more when the reward changed its version between them."""
        for _ in range(MAX_VERSION_CHANGES):
            scored = await self.batcher.submit(samples)
            if len(reward_versions(scored)) <= 1:
                return scored
        versions = ", ".join(reward_versions(scored))
        raise Overloaded(f"scored {MAX_VERSION_CHANGES} times by more than one version ({versions}); try again later")

    def _begin(self, context: Context) -> None:
        """Count the call until its answer has left."""
        self._num_calls += 1
        self._no_calls.clear()
        context.add_done_callback(self._end)

    def _end(self, _: Context) -> None:
        self._num_calls -= 1
        if not self._num_calls:
            self._no_calls.set()


class RewardServer:
    """A scorer behind a port.

    Raises:
        UserError: from `start`, when the reward does not load or the port cannot be had.
    """

    def __init__(self, scorer: Scorer, config: RewardServerConfig) -> None:
        self._scorer = scorer
        self._config = config
        self._servicer = RewardServicer(scorer, config)
        self._health = health.aio.HealthServicer()
        self._stop_metrics: Callable[[], None] = lambda: None
        self._material = server_material(config)
        accepted = tokens(config)
        self._server = grpc.aio.server(
            interceptors=[TokenCheck(accepted.get, open_methods=HEALTH_METHODS)] if accepted else [],
            options=[
                ("grpc.max_receive_message_length", config.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=config.max_calls,
        )
        self._servers = [self._server]

    async def start(self) -> str:
        """Load the reward, listen, and return the address as HOST:PORT."""
        observed = ObservedServicer(self._servicer, self._publish_metrics())
        self._server.add_generic_rpc_handlers((handlers_of(observed),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        port = self._listen()
        await self._scorer.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        for server in self._servers:
            await server.start()
        return f"{bracketed(self._config.host)}:{port}"

    async def drain(self) -> None:
        """Turn NOT_SERVING, let calls under way end within `drain_s`, and stop."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._servicer.finish(self._config.drain_s)
        for server in self._servers:
            await server.stop(None)  # Clients that watch its health never end by themselves.
        await self._scorer.close()
        self._stop_metrics()

    def _publish_metrics(self) -> "RewardMetrics | None":
        """Metrics on a port of their own, where one is configured."""
        if self._config.metrics_port is None:
            return None
        from reward_server.metrics import RewardMetrics, publish

        metrics = RewardMetrics(self._scorer, self._servicer.batcher)
        host = self._config.metrics_host
        port, self._stop_metrics = publish(metrics, host, self._config.metrics_port)
        logger.info("metrics on http://%s:%d/metrics", bracketed(host), port)
        return metrics

    def _listen(self) -> int:
        """Take the ports; returns that of the service."""
        add_port = self._server.add_insecure_port
        if self._material is not None:
            add_port = partial(self._server.add_secure_port, server_credentials=server_credentials(self._material))
        if self._config.health_port is not None:
            for_probes = grpc.aio.server(options=[("grpc.so_reuseport", 0)], maximum_concurrent_rpcs=MAX_PROBES)
            health_pb2_grpc.add_HealthServicer_to_server(self._health, for_probes)
            self._bind(self._config.health_port, for_probes.add_insecure_port)
            self._servers.append(for_probes)
        return self._bind(self._config.port, add_port)

    def _bind(self, port: int, add_port: Callable[[str], int]) -> int:
        target = f"{bracketed(self._config.host)}:{port}"
        try:
            return add_port(target)
        except RuntimeError as error:
            raise UserError(
                f"cannot listen on {target}: the port is taken, or the host is not this machine's; give another "
                "--port (0 takes a free one) or --host"
            ) from error

    async def _set_health(self, status: int) -> None:
        for service in ("", SERVICE_NAME):
            await self._health.set(service, status)


def serve_until_signal(
    make_scorer: Callable[[], Scorer],
    config: RewardServerConfig,
    *,
    signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
) -> None:
    """Serve until one of the signals, then drain. Prints one line with the address once it answers."""
    uvloop.run(_serve_until_signal(make_scorer, config, signals))


async def _serve_until_signal(
    make_scorer: Callable[[], Scorer], config: RewardServerConfig, signals: Sequence[signal.Signals]
) -> None:
    stop = asyncio.Event()
    for number in signals:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = RewardServer(make_scorer(), config)
    address = await server.start()
    sys.stdout.write(f"{READY_PREFIX}{address}\n")
    sys.stdout.flush()
    await stop.wait()  # No deadline: it serves until it is told to end.
    await server.drain()


def fault_in_request(request: reward_pb2.ScoreRequest, *, max_samples: int) -> str | None:
    """Why a request cannot be scored at all; None when it can."""
    if len(request.samples) > max_samples:
        return f"{len(request.samples)} samples in one call; this server takes at most {max_samples}"
    ids = [sample.id for sample in request.samples]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        return f"sample id {twice!r} is given more than once; ids must be unique within a request"
    return None


def decoded_or_failure(message: reward_pb2.Sample) -> RewardSample | Failure:
    try:
        return decode_sample(message)
    except ValueError as error:
        return Failure(code=FailureCode.INVALID_SAMPLE, message=str(error))


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
