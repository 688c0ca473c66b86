"""A rollout worker in a process of its own, without Ray, because vLLM takes a process for itself.

It must not import vLLM: in the process itself the environment is set before that. Invariant: `close` ends the process.
"""

import asyncio
import multiprocessing
import os
from array import array
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rollout_workers.config import RolloutConfig, engine_environment
from rollout_workers.worker import RolloutWorker
from services.contracts.errors import CanaryMismatch
from services.contracts.records import Prompt, Publication, RolloutGroup, SampleRequest, Sampling, SyncReceipt
from services.contracts.settings import ModelConfig
from services.transport.transports import DEVICE_TRANSPORTS
from tests.gpu.variants import CUDA, Variant
from tests.transport.gloo_groups import GLOO

Result = TypeVar("Result")
_START_S = 400.0
_CALL_S = 200.0


class EngineProcess:
    """The process; `start` loads the model of `variant` from `folder` in it.

    Args:
        transport: how its weights come; "gloo" stands for nccl and ipc in a rehearsal.
        gpu: the GPU that it sees, by its number; all of them by default.
    """

    def __init__(
        self,
        variant: Variant,
        folder: Path,
        *,
        transport: str = "disk",
        colocate: bool = False,
        gpu: int | None = None,
    ) -> None:
        self.variant = variant
        self.folder = folder
        self._transport = transport
        self._rollout = RolloutConfig(
            gpus_per_worker=int(CUDA),
            colocate=colocate and CUDA,
            gpu_memory_utilization=0.2,
            kv_cache_gib=0.1,
            enforce_eager=variant.eager,
            start_timeout_s=_START_S,
            sync_timeout_s=_CALL_S,
            sample_timeout_s=_CALL_S,
        )
        self._pool = ProcessPoolExecutor(
            max_workers=1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_enter,
            initargs=(
                engine_environment(self._rollout, cuda=CUDA)
                | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}),
            ),
        )

    def start(self) -> None:
        self._call(_start, self.variant.config(self.folder), self._rollout, self._transport, timeout_s=_START_S)

    def load(self, publication: Publication) -> SyncReceipt:
        return self._call(_load, publication)

    def sample(self, *requests: SampleRequest) -> list[RolloutGroup]:
        """All of them at once."""
        return self._call(_sample, requests)

    def load_while_sampling(
        self, publication: Publication, *requests: SampleRequest
    ) -> list[RolloutGroup | BaseException]:
        """Load once every request has its first tokens; what became of the requests."""
        return self._call(_load_while_sampling, publication, requests)

    def sleep(self) -> None:
        self._call(_sleep)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _call(self, work: Callable[..., Result], *arguments: object, timeout_s: float = _CALL_S) -> Result:
        return self._pool.submit(work, *arguments).result(timeout_s)


def order(token_ids: Sequence[int] = (5, 6, 7), *, prompt_id: str = "prompt", **changes: Any) -> SampleRequest:
    """A request for 8 completions of at most 24 tokens; `changes` go to its `Sampling`."""
    sampling: dict[str, Any] = {"num_samples": 8, "max_completion_tokens": 24, "seed": 3} | changes
    prompt = Prompt(id=prompt_id, text="", token_ids=array("i", token_ids))
    return SampleRequest(prompt=prompt, sampling=Sampling(**sampling))


class _Process:
    """What lives in the process: one event loop, and the worker."""

    loop = asyncio.new_event_loop()
    worker: RolloutWorker


def _enter(environment: Mapping[str, str]) -> None:
    os.environ.update(environment)


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    return _Process.loop.run_until_complete(work)


def _start(model: ModelConfig, rollout: RolloutConfig, transport: str) -> None:
    DEVICE_TRANSPORTS["gloo"] = GLOO
    _Process.worker = RolloutWorker(worker=0, rollout=rollout, model=model, transport=transport)
    _run(_Process.worker.start())


def _load(publication: Publication) -> SyncReceipt:
    return _run(_Process.worker.load_weights(publication))


def _sleep() -> None:
    _run(_Process.worker.sleep())


def _sample(requests: Sequence[SampleRequest]) -> list[RolloutGroup]:
    async def sample_all() -> list[RolloutGroup]:
        return await asyncio.gather(*(_Process.worker.sample(request) for request in requests))

    return _run(sample_all())


def _load_while_sampling(
    publication: Publication, requests: Sequence[SampleRequest]
) -> list[RolloutGroup | BaseException]:
    async def load_in_the_middle() -> list[RolloutGroup | BaseException]:
        worker = _Process.worker
        short = replace(requests[0], sampling=replace(requests[0].sampling, max_completion_tokens=2))
        tasks = [asyncio.create_task(worker.sample(request)) for request in (*requests, short)]
        await tasks[-1]
        with suppress(CanaryMismatch):
            await worker.load_weights(publication)
        return await asyncio.gather(*tasks[:-1], return_exceptions=True)

    return _run(load_in_the_middle())
