"""Weight synchronisation against a bare copy: bytes per second delivered and served, over those of memcpy.

Ours counts from the learner's tensors to the last worker's receipt: pack, checksum, publish, fetch, verify, load and
canary. Theirs copies the same bytes once for each worker. Workers are processes of their own with one thread each.

    python -m benchmarks.weight_sync [--pairs 5] [--hidden 192] [--layers 6] [--workers 1 2 4]
        [--output results.json]
"""

import argparse
import asyncio
import tempfile
import time
from array import array
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray
import torch

from benchmarks.pairs import Ratio, in_turn, report
from benchmarks.reference_model import write_reference_model
from benchmarks.rollout_throughput import start_ray, start_worker
from rollout_workers.config import RolloutConfig
from rollout_workers.pool import RolloutPool
from services.contracts.records import Canary, SyncReceipt
from services.contracts.settings import ModelConfig
from services.transport.shared_memory_weights import SharedMemoryWeights
from services.transport.weights import pack

ROLLOUT = RolloutConfig(kv_cache_gib=0.25)


@torch.no_grad()
def canary_of(model: Any) -> Canary:
    """One sequence of 64 tokens with the model's own logprobs."""
    sequence = torch.arange(2, 66)[None]
    logprobs = model(sequence).logits[0, :-1].log_softmax(-1).gather(-1, sequence[0, 1:, None])[:, 0]
    return Canary(sequences=(array("i", sequence[0]),), logprobs=(array("f", logprobs),), tolerance=1e-3)


async def measure(model: Any, folder: Path, *, num_workers: int, num_pairs: int) -> Ratio:
    served = ModelConfig(path=str(folder), dtype="float32")
    starts = (start_worker(number, ROLLOUT, served, transport="shared_memory") for number in range(num_workers))
    pool = RolloutPool(await asyncio.gather(*starts))
    transport = SharedMemoryWeights()
    tensors = [(name, parameter.detach()) for name, parameter in model.named_parameters()]
    num_bytes = sum(tensor.nbytes for _, tensor in tensors)
    canary = canary_of(model)
    source, target = np.ones(num_bytes, np.uint8), np.ones(num_bytes, np.uint8)
    receipts: list[SyncReceipt] = []
    packing: list[float] = []
    version = 0
    buckets: list[memoryview] = []

    async def ours() -> float:
        nonlocal version, buckets
        started = time.monotonic()
        manifest, buckets = pack(tensors, version=version, dtype="float32", canary=canary, reuse=buckets)
        publication = transport.publish(manifest, buckets)
        packing.append(time.monotonic() - started)
        receipts.extend(await pool.load_weights(publication))
        version += 1
        return num_workers * num_bytes / (time.monotonic() - started)

    async def theirs() -> float:
        started = time.perf_counter()
        for _ in range(num_workers):
            np.copyto(target, source)
        return num_workers * num_bytes / (time.perf_counter() - started)

    measured = await in_turn(ours, theirs, num_pairs=num_pairs)
    parts = ", ".join(
        f"{name} {1000 * median(getattr(receipt, f'{name}_s') for receipt in receipts):.1f} ms"
        for name in ("fetch", "load", "verify")
    )
    print(f"{num_workers} workers, {num_bytes / 1e6:.0f} MB: pack and publish {1000 * median(packing):.1f} ms, {parts}")
    return Ratio(
        name=f"weight sync ÷ memcpy, {num_workers} workers", unit="bytes/s", ours=measured[0], theirs=measured[1],
        aim=0.55,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        model = write_reference_model(Path(folder), hidden_size=arguments.hidden, num_layers=arguments.layers)
        for num_workers in arguments.workers:
            start_ray(object_store_memory=2 * 2**30, num_cpus=num_workers)
            ratios.append(asyncio.run(measure(model, Path(folder), num_workers=num_workers, num_pairs=arguments.pairs)))
            ray.shutdown()
    report(ratios, output=arguments.output)


if __name__ == "__main__":
    main()
