"""The networks of one rank: the policy, the critic if the algorithm has one, the reference if there is a KL penalty.

They must not know losses or how updates are scheduled. Invariant: every rank runs the same number of forward passes,
since sharded weights are gathered in each.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ppo_learner.batching import Batch, MicroBatch, collate, plan_micro_batches
from ppo_learner.config import LearnerConfig
from ppo_learner.engine import Engine, Update, shard_frozen
from ppo_learner.experience import Evaluation
from ppo_learner.lora import without_adapters
from ppo_learner.models import PolicyOutcome, load_critic, load_policy, load_reference
from ppo_learner.moe import check_experts, routing_of_all
from ppo_learner.ranks import Ranks
from ppo_learner.sequence_layout import lay_out
from services.contracts.settings import ModelConfig


class Networks:
    """Policy, critic and reference of one rank.

    Args:
        config: says which of them there are.
        temperature: the sampling temperature, which divides all logits.

    Attributes:
        experts_per_token: of the policy, where it is a mixture of experts.
        packed: whether they take sequences that share a row.
    """

    def __init__(self, config: LearnerConfig, model: ModelConfig, ranks: Ranks, *, temperature: float) -> None:
        self._config = config
        self._ranks = ranks
        self._has_value_head = config.parts.needs_critic and config.critic == "value_head"
        policy = load_policy(model, config, ranks, temperature=temperature, value_head=self._has_value_head)
        self.experts_per_token = policy.experts_per_token
        check_experts(policy.experts_per_token, config.router_loss_coefficient, model.path)
        groups = None
        if policy.value_head is not None:
            groups = [list(policy.language_model.parameters()), list(policy.value_head.parameters())]
        self.language_model = policy.language_model
        self.policy = Engine(policy, config, ranks, groups=groups)
        transformers = [policy.language_model.get_decoder()]
        self.critic: Engine | None = None
        if config.parts.needs_critic and not self._has_value_head:
            critic = load_critic(config.critic_path or model.path, model, config, ranks)
            transformers.append(critic.trunk)
            self.critic = Engine(critic, config, ranks, averaged=False)
        self._reference: Callable[..., PolicyOutcome] | None = None
        if config.kl_coefficient:
            self._reference = self._policy_without_adapters if config.lora else self._load_reference(model, temperature)
        self.packed = lay_out(config, model, self.policy, transformers, ranks)

    @property
    def has_reference(self) -> bool:
        return self._reference is not None

    def train(self) -> None:
        """Enter training mode."""
        self.policy.train()
        if self.critic:
            self.critic.train()

    def act(self, batch: MicroBatch) -> PolicyOutcome:
        """What the policy says of sampled tokens, with gradient."""
        outcome: PolicyOutcome = self.policy(batch, entropy_gradient=self._config.entropy_coefficient != 0)
        return outcome

    def update_policy(self, lr: float, value_head_lr: float) -> Update:
        """One optimizer step of the policy, and of the value head on it."""
        return self.policy.update(*((lr, value_head_lr) if self._has_value_head else (lr,)))

    @torch.no_grad()
    def evaluate(self, batch: Batch, *, logprobs: bool) -> Evaluation:
        """Values and reference logprobs where there are such networks, and the policy's own logprobs on demand.

        Every rank evaluates its share and receives all.
        """
        if not (logprobs or self._has_value_head or self.critic or self._reference):
            return Evaluation()
        # Rows: logprobs, reference logprobs, values. Each rank fills its own entries of zeros.
        columns = torch.zeros(3, batch.num_actions, device=self._ranks.device)
        parts = plan_micro_batches(
            batch.lengths,
            max_tokens=self._config.max_tokens_per_pass,
            num_ranks=self._ranks.num_shares,
            packed=self.packed,
        )
        for part in parts[self._ranks.share]:
            micro_batch = collate(batch, part, self._ranks.device, packed=self.packed)
            for row, outcome in self._outcomes(micro_batch, logprobs).items():
                columns[row, micro_batch.actions] = outcome
        columns = self._ranks.sum_shares(columns)
        return Evaluation(
            logprobs=columns[0] if logprobs else None,
            reference_logprobs=columns[1] if self._reference else None,
            values=columns[2] if self._config.parts.needs_critic else None,
        )

    @torch.no_grad()
    def routing(self, batch: Batch, parts: Sequence[Sequence[int]]) -> Tensor:
        """(2, L, E) what the policy's routers do with the sequences of all ranks, as it is now.

        Args:
            parts: those of this rank, in micro-batches.
        """
        micro_batches = (collate(batch, part, self._ranks.device, packed=self.packed) for part in parts)
        own = [self.policy(micro_batch, logprobs=False).routing for micro_batch in micro_batches]
        return routing_of_all(own, self._ranks)

    @torch.no_grad()
    def rescale_values(self, factor: float, shift: float) -> None:
        """Have the critic say factor·v + shift where it says v, by its last layer alone (POP of arXiv 1602.07714)."""
        (self.critic or self.policy).change(
            {
                "value_head.weight": lambda weight: factor * weight,
                "value_head.bias": lambda bias: factor * bias + shift,
            }
        )

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state of every rank."""
        self.policy.save(folder / "policy")
        if self.critic:
            self.critic.save(folder / "critic")

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote."""
        self.policy.load(folder / "policy")
        if self.critic:
            self.critic.load(folder / "critic")

    def close(self) -> None:
        """Release what the engines hold."""
        self.policy.close()
        if self.critic:
            self.critic.close()

    def _load_reference(self, model: ModelConfig, temperature: float) -> torch.nn.Module:
        reference = load_reference(model, self._config, self._ranks, temperature=temperature)
        return shard_frozen(reference, self._ranks, self._config)

    def _policy_without_adapters(self, batch: MicroBatch, *, entropy: bool) -> PolicyOutcome:
        """The policy before training, whose weights need no second copy."""
        with without_adapters(self.policy.module):
            outcome: PolicyOutcome = self.policy(batch, entropy=entropy)
        return outcome

    def _outcomes(self, batch: MicroBatch, with_logprobs: bool) -> dict[int, Tensor]:
        """Row of the columns and what goes into it (N,)."""
        outcomes: dict[int, Tensor] = {}
        if with_logprobs or self._has_value_head:
            said = self.policy(batch, logprobs=with_logprobs, entropy=False)
            outcomes = {0: said.logprobs} | ({2: said.values} if said.values is not None else {})
        if self._reference:
            outcomes[1] = self._reference(batch, entropy=False).logprobs
        if self.critic:
            outcomes[2] = self.critic(batch)
        return outcomes
