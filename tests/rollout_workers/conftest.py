"""Real workers on tiny models, in one other process: vLLM takes a process for itself, and its import takes seconds."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import ray

from rollout_workers.config import RolloutConfig, engine_environment
from services.contracts.errors import CanaryMismatch
from services.contracts.records import Publication, RolloutGroup, SampleRequest, SyncReceipt
from services.contracts.settings import ModelConfig
from services.transport.disk_weights import DiskWeights
from tests.local_ray import local_ray
from tests.tiny import write_tiny_model

ROLLOUT = RolloutConfig(
    kv_cache_gib=0.05, sample_timeout_s=60, health_timeout_s=2, start_timeout_s=120, sync_timeout_s=60
)


class WorkerHost:
    """The other process."""

    def __init__(self) -> None:
        self._workers: dict[str, Any] = {}

    async def start(self, name: str, model: ModelConfig, rollout: RolloutConfig, transport: str = "disk") -> None:
        from rollout_workers.worker import RolloutWorker
        from services.transport.transports import DEVICE_TRANSPORTS
        from tests.transport.gloo_groups import GLOO

        DEVICE_TRANSPORTS["gloo"] = GLOO
        worker = RolloutWorker(worker=len(self._workers), rollout=rollout, model=model, transport=transport)
        await worker.start()
        self._workers[name] = worker

    async def call(self, name: str, method: str, arguments: Sequence[object]) -> object:
        return await getattr(self._workers[name], method)(*arguments)

    async def tokenizer_revision(self, model: ModelConfig) -> str | None:
        """Of its tokenizer's repository, as vLLM would ask for it."""
        from vllm import EngineArgs

        from rollout_workers.engine import engine_arguments

        revision: str | None = EngineArgs(**engine_arguments(model, ROLLOUT)).create_model_config().tokenizer_revision
        return revision

    async def hang(self, name: str, seconds: float) -> None:
        """Have the engine alone stand still; returns at once, as the process goes on."""
        self._workers[name]._engine.call(lambda engine: time.sleep(seconds))

    async def call_while_full(
        self, name: str, requests: Sequence[SampleRequest], num_slots: int, method: str, arguments: Sequence[object]
    ) -> tuple[object, int, int]:
        """Call once so many completions run; what came back, how many requests had ended then, how many run."""
        worker = self._workers[name]
        tasks = [asyncio.create_task(worker.sample(request)) for request in requests]
        try:
            async with asyncio.timeout(20):
                while await asyncio.wrap_future(worker._engine.call(_num_running)) < num_slots:
                    pass  # The engine takes the next step.
            answer = await getattr(worker, method)(*arguments)
            await worker.health()  # By its end all completions are delivered that ended before the call did.
            num_ended = sum(task.done() for task in tasks)
            return answer, num_ended, await asyncio.wrap_future(worker._engine.call(_num_running))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def load_with_stale_head(self, model: ModelConfig, publication: Publication) -> None:
        from rollout_workers.engine import Engine

        def load() -> None:
            self._stale = Engine(
                model, ROLLOUT, repack_tied_head=False
            )  # Its end would end the others: vLLM's globals.
            self._stale.load(publication.manifest, DiskWeights().fetch(publication, timeout_s=20))

        await asyncio.to_thread(load)

    async def load_while_sampling(
        self, name: str, requests: Sequence[SampleRequest], publication: Publication
    ) -> list[RolloutGroup | BaseException]:
        """Load a version once each request has its first tokens; what became of the requests."""
        worker = self._workers[name]
        short = replace(requests[0], sampling=replace(requests[0].sampling, max_completion_tokens=2))
        tasks = [asyncio.create_task(worker.sample(request)) for request in [*requests, short]]
        await tasks[-1]
        with suppress(CanaryMismatch):
            await worker.load_weights(publication)
        return await asyncio.gather(*tasks[:-1], return_exceptions=True)


def _num_running(engine: Any) -> int:  # Any: vLLM's inside
    return len(engine._llm.engine_core.engine_core.scheduler.running)


@dataclass(frozen=True)
class HostedWorker:
    """A worker in the other process, as a pool sees it; `folder` holds its model."""

    host: Any
    name: str
    folder: Path
    tied: bool = True
    dtype: str = "float32"

    async def sample(self, request: SampleRequest) -> RolloutGroup:
        return await self._call("sample", request)  # type: ignore[no-any-return]

    async def load_weights(self, publication: Publication) -> SyncReceipt:
        return await self._call("load_weights", publication)  # type: ignore[no-any-return]

    async def health(self) -> int:
        return await self._call("health")  # type: ignore[no-any-return]

    async def _call(self, method: str, *arguments: object) -> Any:
        return await asyncio.wait_for(self.host.call.remote(self.name, method, arguments), 90)


def new_host() -> Any:
    """Another process, to be had while the fixture `host` holds Ray up."""
    environment = {"env_vars": engine_environment(ROLLOUT, cuda=False)}
    return ray.remote(WorkerHost).options(max_concurrency=64, num_cpus=0, runtime_env=environment).remote()


@pytest.fixture(scope="package")
def host() -> Iterator[Any]:
    with local_ray(num_cpus=2):
        yield new_host()


VARIANTS = {
    "tied": {"tied": True, "dtype": "float32"},
    "untied": {"tied": False, "dtype": "float32"},
    "tied bfloat16": {"tied": True, "dtype": "bfloat16"},
    "untied bfloat16": {"tied": False, "dtype": "bfloat16"},
}


@pytest.fixture(scope="package")
def started(host: Any) -> dict[str, HostedWorker]:
    return {}


@pytest.fixture
def worker(
    request: pytest.FixtureRequest,
    host: Any,
    started: dict[str, HostedWorker],
    tmp_path_factory: pytest.TempPathFactory,
) -> HostedWorker:
    """A worker of the variant that the test is parametrised with, or "tied"; started once for all tests."""
    name = getattr(request, "param", "tied")
    if name not in started:
        variant = VARIANTS[name]
        folder = write_tiny_model(tmp_path_factory.mktemp("model"), tied=bool(variant["tied"]))
        model = ModelConfig(path=str(folder), dtype=variant["dtype"])  # type: ignore[arg-type]
        ray.get(host.start.remote(name, model, ROLLOUT), timeout=120)
        started[name] = HostedWorker(host, name, folder, **variant)  # type: ignore[arg-type]
    return started[name]
