"""Learner against a bare PyTorch loop: tokens per second of `LearnerRank.step`, over those of the plainest fast loop.

Both take the same rollouts, micro-batches, padding, loss, fused AdamW and clipping, on the same threads, in turn; their
gradient norms are asserted equal at every step. The bare loop finds its micro-batches ready made and reports nothing;
the learner starts from scored groups and measures what a run watches.

    python -m benchmarks.learner_throughput [--pairs 5] [--algorithms grpo ppo] [--dtype float32] [--budget 2048]
"""

import argparse
import asyncio
import random
import tempfile
import time
from array import array
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.pairs import Ratio, in_turn, report
from benchmarks.reference_model import write_reference_model
from ppo_learner.advantages import generalised_advantages, whiten
from ppo_learner.batching import Batch, MicroBatch, batch_rollouts, collate, plan_micro_batches
from ppo_learner.config import LearnerConfig
from ppo_learner.group_advantages import group_normalised_advantages
from ppo_learner.learner import LearnerRank
from ppo_learner.losses import ppo_clip
from ppo_learner.value_losses import value_loss
from services.contracts.records import NOT_SAMPLED, Prompt, Reward, Rollout, RolloutGroup, ScoredGroup
from services.contracts.settings import ModelConfig
from services.transport.ports import free_port

NUM_PROMPTS, GROUP_SIZE, PROMPT_TOKENS = 32, 8, 16
MEAN_TOKENS, MOST_TOKENS = 60, 192


class BareLoop:
    """The same step without DeepSpeed, records, ranks, metrics or checks: `step` returns the policy's gradient norm.

    With bfloat16 it keeps float32 weights and computes under autocast.

    Attributes:
        micro_batches: what each step goes through; by default the learner's own plan.
    """

    def __init__(self, model: Path, config: LearnerConfig, dtype: str, groups: Sequence[ScoredGroup]) -> None:
        from transformers import AutoModel, AutoModelForCausalLM

        self._config = config
        self._autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
        self._policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self._policy_optimizer = self._adamw(self._policy, config.lr)
        if config.parts.needs_critic:
            self._critic = AutoModel.from_pretrained(model, dtype=torch.float32)
            self._critic.value_head = nn.Linear(self._policy.config.hidden_size, 1)
            nn.init.zeros_(self._critic.value_head.weight)
            nn.init.zeros_(self._critic.value_head.bias)
            self._critic_optimizer = self._adamw(self._critic, config.critic_lr)
        self._batch = batch_rollouts(groups)
        self._scores = torch.tensor([reward.value for scored in groups for reward in scored.rewards])
        plan = plan_micro_batches(self._batch.lengths, max_tokens=config.max_tokens_per_micro_batch, num_ranks=1)
        self.micro_batches = [collate(self._batch, part, torch.device("cpu")) for part in plan[0]]

    def step(self) -> float:
        advantages, old_values = self._advantages()
        for batch in self.micro_batches:
            logprobs = self._logprobs(batch)
            losses, _ = ppo_clip(logprobs, logprobs.detach(), advantages[batch.actions], batch.rows, self._config)
            (losses.sum() / self._batch.num_actions).backward()
            if old_values is not None:
                old = old_values[batch.actions]
                returns = self._returns[batch.actions]
                values, _ = value_loss(self._values(batch), old, returns, self._config)
                (self._config.value_coefficient * values.sum() / self._batch.num_actions).backward()
        norm = self._descend(self._policy, self._policy_optimizer)
        if old_values is not None:
            self._descend(self._critic, self._critic_optimizer)
        return norm

    def _advantages(self) -> tuple[Tensor, Tensor | None]:
        groups = torch.arange(NUM_PROMPTS).repeat_interleave(GROUP_SIZE)
        mask = self._batch.mask()
        if not self._config.parts.needs_critic:
            scores = group_normalised_advantages(self._scores.double(), groups)
            return self._batch.unpad(scores[:, None] * mask).float(), None
        old_values = torch.zeros(self._batch.num_actions)
        with torch.no_grad():
            for batch in self.micro_batches:
                old_values[batch.actions] = self._values(batch)
        values = self._batch.pad(old_values.double())
        rewards = torch.zeros_like(values)
        rewards[torch.arange(len(rewards)), self._batch.counts - 1] = self._scores.double()
        raw = generalised_advantages(rewards, values, gamma=self._config.gamma, gae_lambda=self._config.gae_lambda)
        self._returns = self._batch.unpad(raw + values).float()
        return self._batch.unpad(whiten(raw, mask)).float(), old_values

    def _logprobs(self, batch: MicroBatch) -> Tensor:
        with self._autocast:
            hidden = self._policy.model(input_ids=batch.token_ids, use_cache=False).last_hidden_state
            logits = self._policy.lm_head(hidden[batch.rows, batch.columns])
        return -nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none")

    def _values(self, batch: MicroBatch) -> Tensor:
        with self._autocast:
            hidden = self._critic(input_ids=batch.token_ids, use_cache=False).last_hidden_state
        return self._critic.value_head(hidden[batch.rows, batch.columns].float())[:, 0]

    def _descend(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        norm = nn.utils.clip_grad_norm_(network.parameters(), self._config.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad()
        return float(norm)

    def _adamw(self, network: nn.Module, lr: float) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            network.parameters(), lr, betas=self._config.betas, weight_decay=self._config.weight_decay, fused=True
        )


def reference_groups() -> list[ScoredGroup]:
    """32 prompts of 16 tokens with 8 completions each, of geometric length: mean 60, at most 192 tokens."""
    draw = random.Random(0)
    groups = []
    for row in range(NUM_PROMPTS):
        prompt_ids = array("i", draw.choices(range(2, 99), k=PROMPT_TOKENS))
        prompt = Prompt(id=f"0-{row}", text="", token_ids=prompt_ids, row=row)
        rollouts = tuple(_rollout(prompt, index, draw) for index in range(GROUP_SIZE))
        rewards = tuple(Reward(value=draw.random()) for _ in rollouts)
        groups.append(ScoredGroup(group=RolloutGroup(prompt=prompt, rollouts=rollouts), rewards=rewards))
    return groups


def _rollout(prompt: Prompt, index: int, draw: random.Random) -> Rollout:
    length = min(1 + int(draw.expovariate(1 / MEAN_TOKENS)), MOST_TOKENS)
    return Rollout(
        prompt_id=prompt.id,
        sample_index=index,
        token_ids=prompt.token_ids + array("i", draw.choices(range(2, 99), k=length)),
        logprobs=array("f", [0.0] * PROMPT_TOKENS + [-4.6] * length),
        policy_versions=array("i", [NOT_SAMPLED] * PROMPT_TOKENS + [0] * length),
        loss_mask=array("b", [0] * PROMPT_TOKENS + [1] * length),
        num_prompt_tokens=PROMPT_TOKENS,
        completion="",
        finish_reason="stop",
    )


def start_learner(folder: Path, config: LearnerConfig, dtype: str) -> LearnerRank:
    """The only rank of a learner, in this process."""
    return LearnerRank(
        learner=config, model=ModelConfig(path=str(folder), dtype=dtype), transport="disk", rank=0, world_size=1,
        master_address="127.0.0.1", master_port=free_port("127.0.0.1"), seed=0, temperature=1.0, total_steps=1000,
    )  # fmt: skip


async def measure(arguments: argparse.Namespace, folder: Path, algorithm: str) -> Ratio:
    config = LearnerConfig(algorithm=algorithm, max_tokens_per_micro_batch=arguments.budget, lr=1e-5, critic_lr=1e-5)
    groups = reference_groups()
    batch: Batch = batch_rollouts(groups)
    num_tokens = sum(batch.lengths)
    rank = start_learner(folder, config, arguments.dtype)
    bare = BareLoop(folder, config, arguments.dtype, groups)
    norms: list[float] = []

    async def ours() -> float:
        started = time.monotonic()
        metrics = rank.step(groups).metrics
        seconds = time.monotonic() - started
        norms.append(metrics["gradient_norm/policy"])
        return num_tokens / seconds

    async def theirs() -> float:
        started = time.monotonic()
        norm = bare.step()
        seconds = time.monotonic() - started
        tolerance = 1e-3 if arguments.dtype == "float32" else 5e-2
        assert abs(norm / norms[-1] - 1) < tolerance, f"gradient norms {norm} and {norms[-1]}: not the same step"
        return num_tokens / seconds

    measured = await in_turn(ours, theirs, num_pairs=arguments.pairs)
    rank.close()
    return Ratio(
        name=f"{algorithm} learner ÷ bare loop ({arguments.dtype})", unit="tokens/s", ours=measured[0],
        theirs=measured[1], aim=0.9,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--algorithms", nargs="+", choices=["grpo", "ppo"], default=["grpo", "ppo"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_reference_model(Path(folder))
        ratios = [asyncio.run(measure(arguments, Path(folder), algorithm)) for algorithm in arguments.algorithms]
    report(ratios, output=arguments.output)


if __name__ == "__main__":
    main()
