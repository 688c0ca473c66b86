"""The learner on two ranks at ZeRO stages 1, 2 and 3 against plain DistributedDataParallel, in tokens per second.

Both sides live in the same two processes, one thread each, take the same rollouts, micro-batches, loss, fused AdamW and
clipping, and step in turn; their gradient norms are asserted equal. DDP exchanges gradients with the last micro-batch
only.

    python -m benchmarks.zero_stages [--pairs 5] [--budget 2048]
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.learner_throughput import reference_groups
from benchmarks.pairs import Ratio, report
from benchmarks.reference_model import write_reference_model
from ppo_learner.batching import MicroBatch, batch_rollouts, collate, plan_micro_batches
from ppo_learner.config import LearnerConfig
from ppo_learner.group_advantages import group_normalised_advantages
from ppo_learner.learner import LearnerRank
from ppo_learner.losses import ppo_clip
from services.contracts.settings import ModelConfig
from services.transport.ports import free_port

AIMS = {1: 0.9, 2: 0.9, 3: 0.6}
NUM_RANKS = 2


class Logprobs(nn.Module):
    """A causal language model that answers with the logprobs of a micro-batch's sampled tokens."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        super().__init__()
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def forward(self, batch: MicroBatch) -> Tensor:
        hidden = self.model.model(input_ids=batch.token_ids, use_cache=False).last_hidden_state
        logits = self.model.lm_head(hidden[batch.rows, batch.columns])
        return -nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none")


class PlainLoop:
    """One rank of GRPO under DistributedDataParallel: `step` returns the gradient's norm."""

    def __init__(self, folder: Path, config: LearnerConfig, rank: int) -> None:
        self._config = config
        self._network = DistributedDataParallel(Logprobs(folder))
        self._optimizer = torch.optim.AdamW(self._network.parameters(), config.lr, weight_decay=0.0, fused=True)
        groups = reference_groups()
        self._batch = batch_rollouts(groups)
        scores = torch.tensor([reward.value for scored in groups for reward in scored.rewards]).double()
        owners = torch.repeat_interleave(torch.tensor([len(scored.rewards) for scored in groups]))
        advantages = group_normalised_advantages(scores, owners)
        self._advantages = torch.repeat_interleave(advantages, self._batch.counts).float()
        plan = plan_micro_batches(
            self._batch.lengths, max_tokens=config.max_tokens_per_micro_batch, num_ranks=NUM_RANKS
        )
        self._micro_batches = [collate(self._batch, part, torch.device("cpu")) for part in plan[rank]]

    def step(self) -> float:
        for number, batch in enumerate(self._micro_batches, start=1):
            last = number == len(self._micro_batches)
            with nullcontext() if last else self._network.no_sync():
                logprobs = self._network(batch)
                losses, _ = ppo_clip(
                    logprobs, logprobs.detach(), self._advantages[batch.actions], batch.rows, self._config
                )
                # DDP averages over the ranks.
                (losses.sum() * NUM_RANKS / self._batch.num_actions).backward()
        norm = nn.utils.clip_grad_norm_(self._network.parameters(), self._config.max_gradient_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(norm)


def measure_rank(arguments: argparse.Namespace, folder: Path, rank: int, ports: dict[int, int]) -> None:
    """Both sides at each stage, on one of the ranks; the first leaves what it found in the folder."""
    torch.set_num_threads(1)
    groups = reference_groups()
    num_tokens = sum(batch_rollouts(groups).lengths)
    found: dict[int, list[tuple[float, float]]] = {}
    for stage in arguments.stages:
        config = LearnerConfig(
            algorithm="grpo",
            max_tokens_per_micro_batch=arguments.budget,
            lr=1e-5,
            num_ranks=NUM_RANKS,
            zero_stage=stage,
        )
        learner = LearnerRank(
            learner=config, model=ModelConfig(path=str(folder), dtype="float32"), transport="disk", rank=rank,
            world_size=NUM_RANKS, master_address="127.0.0.1", master_port=ports[stage], seed=0, temperature=1.0,
            total_steps=1000,
        )  # fmt: skip
        plain = PlainLoop(folder, config, rank)
        for _ in range(arguments.pairs + 1):
            started = time.monotonic()
            ours = learner.step(groups).metrics["gradient_norm/policy"]
            between = time.monotonic()
            theirs = plain.step()
            seconds = between - started, time.monotonic() - between
            assert abs(ours / theirs - 1) < 1e-3, f"gradient norms {ours} and {theirs}: not the same step"
            found.setdefault(stage, []).append((num_tokens / seconds[0], num_tokens / seconds[1]))
        learner.close()
    if rank == 0:
        (folder / "rates.json").write_text(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--stages", type=int, nargs="+", choices=list(AIMS), default=list(AIMS))
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_reference_model(folder)
        ports = {stage: free_port("127.0.0.1") for stage in arguments.stages}
        ranks = [
            context.Process(target=measure_rank, args=(arguments, folder, rank, ports), daemon=True)
            for rank in range(NUM_RANKS)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        rates = json.loads((folder / "rates.json").read_text())
    ratios = []
    for stage, pairs in rates.items():
        ours, theirs = zip(*pairs[1:], strict=True)  # The first of each is warm-up.
        ratios.append(
            Ratio(
                name=f"ZeRO-{stage} ÷ DDP, two ranks", unit="tokens/s", ours=ours, theirs=theirs, aim=AIMS[int(stage)]
            )
        )
    report(ratios, output=arguments.output)


if __name__ == "__main__":
    main()
