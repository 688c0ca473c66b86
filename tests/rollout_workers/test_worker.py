"""A worker on an engine without a model: what it serves after loads that fail."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rollout_workers.config import RolloutConfig
from rollout_workers.worker import RolloutWorker
from services.contracts.errors import WeightSyncError
from services.contracts.records import Canary, Publication, WeightManifest
from services.contracts.settings import ModelConfig


@dataclass
class FakeEngine:
    """Loads whatever comes; what a load gives has the numbers that a receipt needs."""

    generation: int = 0
    version: int = 0
    refusal: str | None = None
    busy: bool = False
    asleep: bool = True
    canary_error: float = 0.0
    load_s: float = 0.0
    verify_s: float = 0.0

    def refuse(self, reason: str) -> None:
        self.refusal = reason

    def load(self, manifest: WeightManifest, buckets: Sequence[memoryview]) -> "FakeEngine":
        self.generation, self.version = manifest.age
        self.refusal = None
        return self

    def close(self) -> None:
        """There is nothing to free."""


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def worker(engine: FakeEngine) -> AsyncIterator[RolloutWorker]:
    class Worker(RolloutWorker):
        def _build(self) -> Any:  # Any: it has what is used of an engine
            return engine

    worker = Worker(worker=0, rollout=RolloutConfig(), model=ModelConfig(path="none"), transport="disk")
    await worker.start()
    yield worker
    await worker.close()


def publication(version: int, *buckets: Path, generation: int = 0) -> Publication:
    manifest = WeightManifest(
        version=version,
        generation=generation,
        tensors=(),
        bucket_bytes=(1,) * len(buckets),
        checksums=("0" * 16,) * len(buckets),
        canary=Canary(sequences=(), logprobs=(), tolerance=1.0),
    )
    return Publication(transport="disk", manifest=manifest, locations=tuple(map(str, buckets)))


async def fails_after(served: Publication, late: Publication, bucket: Path, worker: RolloutWorker) -> None:
    """Have a load wait for its bucket until another is served, and fail then."""
    task = asyncio.create_task(worker.load_weights(late))
    await worker.load_weights(served)
    bucket.write_bytes(b"more than a byte")
    with pytest.raises(WeightSyncError, match="published with 1"):
        await task
    await worker.health()  # Which the engine's thread comes to after all that was asked of it before.


async def test_a_load_that_fails_after_newer_weights_came_leaves_them_served(
    worker: RolloutWorker, engine: FakeEngine, tmp_path: Path
) -> None:
    bucket = tmp_path / "bucket"

    await fails_after(publication(8, generation=1), publication(9, bucket), bucket, worker)

    assert (engine.version, engine.refusal) == (8, None)


async def test_after_any_other_load_that_fails_nothing_is_served(
    worker: RolloutWorker, engine: FakeEngine, tmp_path: Path
) -> None:
    bucket = tmp_path / "bucket"

    await fails_after(publication(8), publication(9, bucket), bucket, worker)

    assert str(engine.refusal).startswith("nothing is served since version 9 failed to load")
