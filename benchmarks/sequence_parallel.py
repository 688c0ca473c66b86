"""Peak memory and time of one pass over a long sequence that ranks share, against one rank that has it whole.

A Llama of 8 layers of 256; each point is one or two processes of one thread, of which the largest peak resident memory
above what it held after a pass over a short sequence is taken, so weights are not in it. Times are of forward and
backward pass together, the faster of two.

    python -m benchmarks.sequence_parallel [--figure docs/sequence_parallel.svg] [--output FILE]
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from array import array
from pathlib import Path

import torch
from torch import distributed
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.charts import Chart, Line, draw
from benchmarks.learner_memory import resident_bytes
from ppo_learner.batching import MicroBatch, batch_demonstrations, collate
from ppo_learner.engine import prepare_deepspeed
from ppo_learner.models import Policy
from ppo_learner.ranks import Ranks, join
from ppo_learner.sequence_parallel import SequenceParallel
from services.contracts.records import Demonstration
from services.transport.ports import free_port

TOKENS = (1024, 2048, 4096, 8192)
SHAPE = {
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": max(TOKENS),
}  # fmt: skip


def measure(ranks: Ranks, tokens: int) -> tuple[float, float]:
    """Bytes at the peak of a pass, and its seconds, in this process."""
    torch.manual_seed(0)
    sequences = SequenceParallel(ranks, ranks.sharing, "sdpa") if ranks.sharing else None
    policy = Policy(LlamaForCausalLM(LlamaConfig(**SHAPE)), temperature=1.0, sequences=sequences)
    _pass(policy, _sequence(64))
    before = resident_bytes()
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        _pass(policy, _sequence(tokens))
        seconds.append(time.perf_counter() - begin)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, min(seconds)


def _sequence(tokens: int) -> MicroBatch:
    ids = array("i", (number % SHAPE["vocab_size"] for number in range(tokens)))
    batch = batch_demonstrations([Demonstration(token_ids=ids, loss_mask=array("b", [1] * tokens))])
    return collate(batch, [0], torch.device("cpu"))


def _pass(policy: Policy, batch: MicroBatch) -> None:
    policy.zero_grad()
    policy(batch, entropy=False).logprobs.sum().backward()


def measure_apart(num_ranks: int, tokens: int) -> tuple[float, float]:
    """The same of so many processes, the largest of each."""
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "benchmarks.sequence_parallel", "--point", str(num_ranks), str(tokens), str(port)]
    processes = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(num_ranks)
    ]
    try:
        found = [json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in processes]
    finally:
        for process in processes:
            process.kill()
    memory, seconds = (max(values) for values in zip(*found, strict=True))
    return memory, seconds


def measure_here(num_ranks: int, tokens: int, port: int, rank: int) -> None:
    """Print what one of so many ranks finds."""
    torch.set_num_threads(1)
    prepare_deepspeed()
    ranks = join(
        rank=rank,
        world_size=num_ranks,
        master_address="127.0.0.1",
        master_port=port,
        timeout_s=120.0,
        num_sharing=num_ranks,
    )
    print(json.dumps(measure(ranks, tokens)))
    distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--point", nargs=4, type=int, metavar=("RANKS", "TOKENS", "PORT", "RANK"))
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.point:
        measure_here(*arguments.point)
        return
    mebibytes: dict[int, dict[int, float]] = {}
    for tokens in TOKENS:
        (one, alone_s), (two, shared_s) = (measure_apart(num_ranks, tokens) for num_ranks in (1, 2))
        for num_ranks, memory in ((1, one), (2, two)):
            mebibytes.setdefault(num_ranks, {})[tokens] = memory / 2**20
        print(
            f"{tokens:6,} tokens: {one / 2**20:7,.0f} MiB alone, {two / 2**20:7,.0f} MiB of each of two "
            f"({two / one:.2f}); time of two over that of one {shared_s / alone_s:.2f}",
            flush=True,
        )
    if arguments.output:
        arguments.output.write_text(json.dumps(mebibytes, indent=2) + "\n")
    if arguments.figure:
        labels = {1: "one rank", 2: "each of two that share it"}
        lines = [Line(label=labels[n], x=list(found), y=list(found.values())) for n, found in mebibytes.items()]
        draw([Chart(title="peak memory of one sequence, MiB", x="tokens", lines=lines, log=True)], arguments.figure)


if __name__ == "__main__":
    main()
