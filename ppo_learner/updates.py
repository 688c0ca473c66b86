"""The optimizer steps of one learner step: epochs, mini-batches, micro-batches.

It must not know rewards or how advantages came about. Invariants: the weights of each mini-batch's tokens sum to 1 over
all ranks; the order of mini-batches is a function of seed, step and epoch; all ranks skip an update or none does.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppo_learner.batching import MicroBatch, collate, plan_micro_batches
from ppo_learner.config import LearnerConfig
from ppo_learner.engine import Update
from ppo_learner.experience import Experience
from ppo_learner.losses import token_weights
from ppo_learner.networks import Networks
from ppo_learner.objective import SUMS, policy_objective, value_objective
from ppo_learner.ranks import Ranks
from services.contracts.errors import NonFiniteStep


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What a learner step trains with: learning rates, the KL coefficient, and whether the policy moves at all."""

    lr: float
    critic_lr: float
    kl_coefficient: float
    train_policy: bool


@dataclass(kw_only=True, slots=True)
class Trace:
    """What the updates of one learner step measured.

    Attributes:
        sums: (len(SUMS),) means over each update, added up over updates, of every rank.
        gradient_norms: of each network, one per update.
        logprobs: (A,) of each token when it was first trained on, of every rank.
        num_updates: optimizer steps, skipped ones included.
        num_skipped: optimizer steps left out for a non-finite gradient.
    """

    sums: Tensor = field(default_factory=lambda: torch.zeros(len(SUMS), dtype=torch.float64))
    gradient_norms: dict[str, list[float]] = field(default_factory=dict)
    logprobs: Tensor
    num_updates: int = 0
    num_skipped: int = 0


class SkipCounter:
    """Stops the run after too many skipped updates in a row.

    Attributes:
        in_a_row: updates skipped since the last one that moved the weights; part of the checkpoint.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.in_a_row = 0

    def count(self, updates: Mapping[str, Update]) -> None:
        """Note the updates of each network at one optimizer step. Raises `NonFiniteStep` at the limit."""
        if all(update.applied for update in updates.values()):
            self.in_a_row = 0
            return
        self.in_a_row += 1
        if self.in_a_row >= self._limit:
            norms = ", ".join(f"{name} {update.gradient_norm}" for name, update in updates.items())
            raise NonFiniteStep(
                f"{self.in_a_row} updates in a row had a gradient that is not finite (norms: {norms}) and changed no "
                "weight; resume from the last checkpoint with a lower learner.lr, or look at the rewards"
            )


class Updater:
    """Trains networks on experience; `skips` counts the updates left out."""

    def __init__(self, networks: Networks, config: LearnerConfig, ranks: Ranks, *, seed: int) -> None:
        self._networks = networks
        self._config = config
        self._ranks = ranks
        self._seed = seed
        self.skips = SkipCounter(config.max_nonfinite_steps)

    def train(self, experience: Experience, rates: Rates, *, step: int) -> Trace:
        """All epochs over `experience`.

        Raises:
            NonFiniteStep: too many updates in a row were skipped.
        """
        self._networks.train()
        trace = Trace(logprobs=torch.zeros(experience.batch.num_actions))
        for epoch in range(self._config.num_epochs):
            for sequences in self._minibatches(len(experience.batch.token_ids), step=step, epoch=epoch):
                self._update(experience, sequences, rates, trace, first_sight=epoch == 0)
        trace.sums = self._ranks.sum(trace.sums)
        trace.logprobs = self._ranks.sum(trace.logprobs)
        return trace

    def _minibatches(self, num_sequences: int, *, step: int, epoch: int) -> tuple[Tensor, ...]:
        if self._config.num_minibatches == 1:
            return (torch.arange(num_sequences),)
        order = list(range(num_sequences))
        random.Random(f"{self._seed}/{step}/{epoch}").shuffle(order)
        return torch.tensor_split(torch.tensor(order), min(self._config.num_minibatches, num_sequences))

    def _update(
        self, experience: Experience, sequences: Tensor, rates: Rates, trace: Trace, *, first_sight: bool
    ) -> None:
        """One optimizer step of each network on some sequences of the batch."""
        batch = experience.batch
        weights = torch.zeros(len(batch.token_ids), dtype=torch.float64)
        weights[sequences] = token_weights(batch.counts[sequences], self._config.loss_aggregation)
        weight_column = torch.repeat_interleave(weights, batch.counts).float()  # (A,)
        chosen = sequences.tolist()
        parts = plan_micro_batches(
            [batch.lengths[i] for i in chosen],
            max_tokens=self._config.max_tokens_per_micro_batch,
            num_ranks=self._ranks.world_size,
        )[self._ranks.rank]
        for number, part in enumerate(parts):
            micro_batch = collate(batch, [chosen[i] for i in part], self._ranks.device)
            token_weight = weight_column[micro_batch.actions].to(self._ranks.device)
            last = number == len(parts) - 1
            if rates.train_policy:
                logprobs = self._descend_policy(micro_batch, experience, token_weight, rates, trace, last=last)
                if first_sight:
                    trace.logprobs[micro_batch.actions] = logprobs
            if self._networks.critic:
                values = self._networks.critic(micro_batch)
                objective = value_objective(values, micro_batch, experience, token_weight, self._config)
                self._networks.critic.backward(objective.loss, last=last)
                trace.sums += objective.sums
        self._apply(rates, trace)

    def _descend_policy(
        self, batch: MicroBatch, experience: Experience, weights: Tensor, rates: Rates, trace: Trace, *, last: bool
    ) -> Tensor:
        logprobs, entropy, values = self._networks.act(batch)
        objective = policy_objective(
            logprobs, entropy, batch, experience, weights, self._config, kl_coefficient=rates.kl_coefficient
        )
        loss = objective.loss
        trace.sums += objective.sums
        if values is not None:
            beside = value_objective(values, batch, experience, weights, self._config)
            loss = loss + beside.loss
            trace.sums += beside.sums
        self._networks.policy.backward(loss, last=last)
        return logprobs.detach().cpu()

    def _apply(self, rates: Rates, trace: Trace) -> None:
        updates = {}
        if rates.train_policy:
            updates["policy"] = self._networks.update_policy(rates.lr, rates.critic_lr)
        if self._networks.critic:
            updates["critic"] = self._networks.critic.update(rates.critic_lr)
        for name, update in updates.items():
            trace.gradient_norms.setdefault(name, []).append(update.gradient_norm)
        trace.num_updates += 1
        trace.num_skipped += not all(update.applied for update in updates.values())
        self.skips.count(updates)
