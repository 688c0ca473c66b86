"""One rollout worker: an engine behind asynchronous calls, made an actor of the cluster by the controller's side.

It must not know other workers, rewards or the learner. Invariants: it samples only from weights that passed checksum
and canary; a rollout's completion is decoded for reading and its sampled token ids are what is trained; every wait has
a deadline.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from rollout_workers.config import RolloutConfig
from rollout_workers.dialogue_tokens import DialogueTokens
from rollout_workers.dialogues import Dialogues
from rollout_workers.engine_thread import EngineThread
from rollout_workers.environments import load_environment
from rollout_workers.traces import to_group
from services.contracts.errors import DeadlineExceeded, UserError, VersionMismatch, WeightSyncError
from services.contracts.records import Publication, RolloutGroup, SampleRequest, SyncReceipt
from services.contracts.settings import ModelConfig
from services.transport.device_weights import Pull
from services.transport.transports import TRANSPORTS, transport_names
from services.transport.weights import verify_checksums

if TYPE_CHECKING:
    from rollout_workers.engine import Engine

_CLOSE_TIMEOUT_S = 10.0


class RolloutWorker:
    """Loads the model in `start`, with the variables of `engine_environment` already set.

    Args:
        worker: its number, in receipts and errors.
        transport: how new weights come, and then it samples nothing before the first came; None serves the weights of
            the model's folder, as version 0, for good.
    """

    def __init__(self, *, worker: int, rollout: RolloutConfig, model: ModelConfig, transport: str | None) -> None:
        if transport is not None and transport not in transport_names():
            raise UserError(f"weights.transport is {transport!r}; choose one of {', '.join(transport_names())}")
        self._worker = worker
        self._rollout = rollout
        self._model = model
        self._transport = TRANSPORTS[transport]() if transport in TRANSPORTS else None
        self._transport_name = transport
        self._thread: EngineThread | None = None
        self._dialogues: Dialogues | None = None

    async def start(self) -> None:
        """Load the model. Raises `UserError` when vLLM refuses model or settings, or the environment does not load, and
        `DeadlineExceeded`."""
        settings = self._rollout.environment
        environment = load_environment(settings) if settings else None
        self._thread = EngineThread(self._build, name=f"rollout worker {self._worker}")
        async with self._deadline("the model to be loaded", self._rollout.start_timeout_s, "raise start_timeout_s"):
            await asyncio.wrap_future(self._thread.ready)
            if settings is not None and environment is not None:
                tokenizer = await asyncio.wrap_future(self._engine.call(lambda engine: engine.tokenizer))
                self._dialogues = Dialogues(settings, environment, DialogueTokens(tokenizer, settings.role))

    async def sample(self, request: SampleRequest) -> RolloutGroup:
        """Sample one group.

        Raises:
            WeightSyncError: no verified weights are loaded.
            UserError: the prompt leaves no room for a completion.
            DeadlineExceeded: after `sample_timeout_s`; the group's sampling is stopped.
            WorkerLost: the engine failed; this worker serves no more.
            EnvironmentFailed: the environment gave no answer, however often it was asked.
        """
        what = f"{request.sampling.num_samples} completions of prompt {request.prompt.id}"
        async with self._deadline(what, self._rollout.sample_timeout_s, "raise it, or shorten max_completion_tokens"):
            if self._dialogues is not None:
                return await self._dialogues.sample(self._engine, request)
            completions = await asyncio.wrap_future(self._engine.sample(request))
        return to_group(request.prompt, completions)

    async def load_weights(self, publication: Publication) -> SyncReceipt:
        """Fetch, verify, load and check a version; then serve it.

        Raises:
            VersionMismatch: it is older than what is served; nothing changes.
            WeightSyncError: it did not arrive as published, or does not fit, or fails the canary; nothing is served
                until a later version loads, unless one did meanwhile.
            DeadlineExceeded: after `sync_timeout_s`.
        """
        manifest = publication.manifest
        what = f"version {manifest.version} of the weights to be served"
        try:
            async with self._deadline(what, self._rollout.sync_timeout_s, "raise it, or see the learner's log"):
                return await self._fetch_and_load(publication)
        except VersionMismatch:
            raise
        except (WeightSyncError, DeadlineExceeded) as error:
            reason = f"nothing is served since version {manifest.version} failed to load: {error}"
            self._engine.call(lambda engine: _refuse(engine, reason, unless_newer_than=manifest.age))
            raise

    async def health(self) -> int:
        """Have the engine show that it goes on, and return the policy version.

        Raises `DeadlineExceeded` or `WorkerLost`.
        """
        async with self._deadline("one token", self._rollout.health_timeout_s, "replace this worker"):
            return await asyncio.wrap_future(self._engine.call(_show_progress))

    async def sleep(self) -> None:
        """Give up the GPU's memory, for a learner on the same GPU; groups under way wait. Loading weights wakes it up.

        Raises:
            DeadlineExceeded: after `sync_timeout_s`.
        """
        async with self._deadline("the engine to sleep", self._rollout.sync_timeout_s, "see the worker's log"):
            await asyncio.wrap_future(self._engine.call(lambda engine: engine.sleep()))

    async def close(self) -> None:
        """Stop; whatever is under way fails with `WorkerLost`."""
        if self._thread is not None:
            await asyncio.to_thread(self._thread.close, _CLOSE_TIMEOUT_S)

    @property
    def _engine(self) -> EngineThread:
        if self._thread is None:
            raise WeightSyncError(f"rollout worker {self._worker} was not started; call start first")
        return self._thread

    def _build(self) -> Engine:
        from rollout_workers.engine import Engine  # vLLM, which must not be imported where workers are only described

        engine = Engine(self._model, self._rollout)
        if self._transport_name is not None:
            engine.refuse(f"rollout worker {self._worker} serves nothing before its first weights have come")
        return engine

    async def _fetch_and_load(self, publication: Publication) -> SyncReceipt:
        manifest = publication.manifest
        started = time.monotonic()
        self._check_transport(publication)
        weights = await asyncio.to_thread(self._fetch, publication)
        fetched = time.monotonic()
        if not isinstance(weights, Pull):
            await asyncio.to_thread(verify_checksums, manifest, weights)
        verified = time.monotonic()
        loaded = await asyncio.wrap_future(self._engine.load(manifest, weights))
        return SyncReceipt(
            worker=self._worker,
            version=manifest.version,
            generation=manifest.generation,
            canary_error=loaded.canary_error,
            fetch_s=fetched - started,
            load_s=loaded.load_s,
            verify_s=verified - fetched + loaded.verify_s,
            stall_s=loaded.load_s + loaded.verify_s,
        )

    def _check_transport(self, publication: Publication) -> None:
        if publication.transport != self._transport_name:
            raise WeightSyncError(
                f"weights come by {publication.transport!r} and rollout worker {self._worker} was started for "
                f"{self._transport_name!r}; give learner and workers the same weights.transport"
            )

    def _fetch(self, publication: Publication) -> Sequence[memoryview] | Pull:
        """The buckets, or, where only the engine's own processes can receive them, the order to do so."""
        timeout_s = self._rollout.sync_timeout_s
        if self._transport is None:
            return Pull(publication=publication, member=f"rollout worker {self._worker}", timeout_s=timeout_s)
        return self._transport.fetch(publication, timeout_s=timeout_s)

    @asynccontextmanager
    async def _deadline(self, waited_for: str, timeout_s: float, advice: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError as error:
            if isinstance(error, DeadlineExceeded):
                raise
            raise DeadlineExceeded(
                waited_for=f"{waited_for} (rollout worker {self._worker})", waited_s=timeout_s, advice=advice
            ) from error


def _refuse(engine: Engine, reason: str, *, unless_newer_than: tuple[int, int]) -> None:
    """A load that was given up for a newer one may still fail, long after that is served."""
    if (engine.generation, engine.version) <= unless_newer_than:
        engine.refuse(reason)


def _show_progress(engine: Engine) -> int:
    """A token where nothing is sampled. Elsewhere a step has ended, or the engine's thread would not run this."""
    if not engine.busy and not engine.asleep:
        engine.prompt_logprobs([[0, 0]])
    return engine.version
