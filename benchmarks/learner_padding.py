"""Token budgets against padding: the learner's step over a bare loop that pads every sequence to the step's longest.

Lengths are long-tailed (geometric, cut at 192). The padded loop takes as many sequences at a time as the same budget of
tokens allows at full length. The token-count limit is what a ratio could be at most if time went by tokens alone:
tokens with padding over tokens without. Gradient norms are asserted equal at every step.

    python -m benchmarks.learner_padding [--pairs 5] [--budget 2048]
"""

import argparse
import asyncio
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional

from benchmarks.learner_throughput import BareLoop, reference_groups, start_learner
from benchmarks.pairs import Ratio, in_turn, report
from benchmarks.reference_model import write_reference_model
from ppo_learner.batching import Batch, MicroBatch, batch_rollouts, collate
from ppo_learner.config import LearnerConfig


def padded_micro_batches(batch: Batch, budget: int) -> list[MicroBatch]:
    """All sequences in their order, each as wide as the longest of all."""
    width, number = max(batch.lengths), len(batch.lengths)
    rows = max(budget // width, 1)
    parts = [collate(batch, range(i, min(i + rows, number)), torch.device("cpu")) for i in range(0, number, rows)]
    return [
        replace(part, token_ids=functional.pad(part.token_ids, (0, width - part.token_ids.shape[1]))) for part in parts
    ]


async def measure(arguments: argparse.Namespace, folder: Path) -> tuple[Ratio, dict[str, float]]:
    config = LearnerConfig(algorithm="grpo", max_tokens_per_micro_batch=arguments.budget, lr=1e-5)
    groups = reference_groups()
    batch = batch_rollouts(groups)
    num_tokens = sum(batch.lengths)
    rank = start_learner(folder, config, "float32")
    padded = BareLoop(folder, config, "float32", groups)
    padded.micro_batches = padded_micro_batches(batch, arguments.budget)
    norms: list[float] = []

    async def ours() -> float:
        started = time.monotonic()
        norms.append(rank.step(groups).metrics["gradient_norm/policy"])
        return num_tokens / (time.monotonic() - started)

    async def theirs() -> float:
        started = time.monotonic()
        norm = padded.step()
        seconds = time.monotonic() - started
        assert abs(norm / norms[-1] - 1) < 1e-3, f"gradient norms {norm} and {norms[-1]}: not the same step"
        return num_tokens / seconds

    measured = await in_turn(ours, theirs, num_pairs=arguments.pairs)
    rank.close()
    ratio = Ratio(name="token budget ÷ padded", unit="tokens/s", ours=measured[0], theirs=measured[1], aim=3)
    limit = sum(part.token_ids.numel() for part in padded.micro_batches) / num_tokens
    return ratio, {"token-count limit": limit, "share of the limit": median(ratio.ratios) / limit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_reference_model(Path(folder))
        ratio, facts = asyncio.run(measure(arguments, Path(folder)))
    report([ratio], output=arguments.output, facts=facts)


if __name__ == "__main__":
    main()
