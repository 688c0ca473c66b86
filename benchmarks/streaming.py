"""Row 2c: accepted tokens per second, streaming with in-flight weight updates ÷ batch-synchronous.

One rollout worker; lengths are geometric with a mean of about 100 tokens and a cap of 768, so that the longest of a
batch is many times the mean. Both load a version of the weights for every 32 prompts. Batch-synchronous waits for all
32, loads, and orders the next; streaming keeps a few batches under way and loads between two decode steps. Limit: what
is to be had at most, the same stream without any load.

    python -m benchmarks.streaming [--pairs 5] [--batches 4] [--ahead 2] [--on-new-weights recompute]
        [--output results.json]
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from benchmarks.pairs import Ratio, in_turn, report
from benchmarks.reference_model import write_reference_model
from benchmarks.rollout_throughput import orders, start_ray, start_worker
from benchmarks.weight_sync import canary_of
from rollout_workers.config import RolloutConfig
from rollout_workers.pool import RolloutPool
from services.contracts.records import RolloutGroup, SampleRequest
from services.contracts.settings import ModelConfig
from services.transport.shared_memory_weights import SharedMemoryWeights
from services.transport.weights import pack

BATCH = 32
ROLLOUT = RolloutConfig(max_completion_tokens=768, kv_cache_gib=1.0)


class Updates:
    """Publishes the same weights under ever new versions."""

    def __init__(self, model: Any, pool: RolloutPool) -> None:  # Any: transformers' model
        self._tensors = [(name, parameter.detach()) for name, parameter in model.named_parameters()]
        self._canary = canary_of(model)
        self._transport = SharedMemoryWeights()
        self._pool = pool
        self._version = -1

    async def load(self) -> None:
        self._version += 1
        manifest, buckets = pack(self._tensors, version=self._version, dtype="float32", canary=self._canary)
        await self._pool.load_weights(self._transport.publish(manifest, buckets))


def endless_orders(rollout: RolloutConfig) -> Iterator[SampleRequest]:
    """Requests, each for a prompt with an id of its own."""
    number = 0
    while True:
        for request in orders(rollout, num_prompts=BATCH):
            yield replace(request, prompt=replace(request.prompt, id=f"0-{number}"))
            number += 1


def num_tokens(group: RolloutGroup) -> int:
    return sum(rollout.num_completion_tokens for rollout in group.rollouts)


async def batch_synchronous(pool: RolloutPool, updates: Updates, requests: Iterator[SampleRequest], num: int) -> float:
    """Tokens per second over `num` batches."""
    started, tokens = time.monotonic(), 0
    for _ in range(num):
        groups = await asyncio.gather(*(pool.sample(next(requests)) for _ in range(BATCH)))
        tokens += sum(map(num_tokens, groups))
        await updates.load()
    return tokens / (time.monotonic() - started)


async def streaming(
    pool: RolloutPool, updates: Updates | None, requests: Iterator[SampleRequest], num: int, *, ahead: int
) -> float:
    """Tokens per second over `num` batches, after as many as are ahead have filled the pipeline."""
    pending = {asyncio.create_task(pool.sample(next(requests))) for _ in range(ahead * BATCH)}
    update: asyncio.Task[None] | None = None
    accepted, tokens, started = 0, 0, 0.0
    while accepted < (ahead + num) * BATCH:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            accepted += 1
            tokens += num_tokens(task.result()) if accepted > ahead * BATCH else 0
            if accepted == ahead * BATCH:
                started = time.monotonic()
            if accepted % BATCH == 0 and updates is not None:
                if update is not None:
                    await update
                update = asyncio.create_task(updates.load())
            pending.add(asyncio.create_task(pool.sample(next(requests))))
    seconds = time.monotonic() - started
    if update is not None:
        await update
    for task in pending:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    return tokens / seconds


async def measure(arguments: argparse.Namespace, folder: Path) -> list[Ratio]:
    model = write_reference_model(folder)
    served = ModelConfig(path=str(folder), dtype="float32", max_length=1024)
    rollout = ROLLOUT.model_copy(update={"on_new_weights": arguments.on_new_weights})
    worker = await start_worker(0, rollout, served, transport="shared_memory")
    pool = RolloutPool([worker], max_outstanding=rollout.groups_at_once)
    updates, requests, num = Updates(model, pool), endless_orders(rollout), arguments.batches
    await updates.load()
    limits: list[float] = []

    async def ours() -> float:
        limits.append(await streaming(pool, None, requests, num, ahead=arguments.ahead))
        return await streaming(pool, updates, requests, num, ahead=arguments.ahead)

    async def theirs() -> float:
        return await batch_synchronous(pool, updates, requests, num)

    rates = await in_turn(ours, theirs, num_pairs=arguments.pairs)
    return [
        Ratio(
            name="2c streaming ÷ batch-synchronous, accepted", unit="tokens/s", ours=rates[0], theirs=rates[1], aim=2.0
        ),
        Ratio(
            name="2c streaming ÷ the stream without updates", unit="tokens/s", ours=rates[0], theirs=limits[1:],
            aim=0.95,
        ),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--ahead", type=int, default=2)
    parser.add_argument("--on-new-weights", choices=("recompute", "keep"), default="recompute")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    start_ray(object_store_memory=2**30)
    with tempfile.TemporaryDirectory() as folder:
        ratios = asyncio.run(measure(arguments, Path(folder)))
    report(ratios, output=arguments.output)
    ray.shutdown()


if __name__ == "__main__":
    main()
