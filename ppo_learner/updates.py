"""The optimizer steps of one learner step: epochs, mini-batches, micro-batches.

It must not know rewards or how advantages came about. Invariants: what a token counts is decided from the
whole mini-batch, over all ranks; the order of mini-batches is a function of seed, step and epoch; all ranks skip an
update, or leave it out, or none does.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ppo_learner.aggregation import AGGREGATIONS
from ppo_learner.batching import Batch, MicroBatch, collate, plan_micro_batches
from ppo_learner.config import LearnerConfig
from ppo_learner.experience import Experience
from ppo_learner.mixing import descend_demonstrations, shares
from ppo_learner.models import PolicyOutcome
from ppo_learner.moe import balance_loss
from ppo_learner.networks import Networks
from ppo_learner.objective import SUMS, Objective, policy_objective, value_objective
from ppo_learner.ranks import Ranks
from ppo_learner.skip_counter import SkipCounter
from services.contracts.records import Demonstration, WeightedDemonstrations


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What a learner step trains with: learning rates, the KL coefficient, whether the policy moves at all, and what
    its loss on the rollouts counts."""

    lr: float
    critic_lr: float
    kl_coefficient: float
    train_policy: bool
    policy_weight: float = 1.0


@dataclass(kw_only=True, slots=True)
class Trace:
    """What the updates of one learner step measured.

    Attributes:
        sums: (len(SUMS),) means over each update, added up over updates.
        logprobs: (A,) of the tokens of the first update, from the policy at the step's start; 0 of all others.
        known: (B,) True on the completions of that update.
        ratio_range: (2,) how far any token's logarithm of the probability ratio went below 0, and above.
        gradient_norms: of each network, and of each kind of module in it, one per update.
        num_updates: optimizer steps, skipped ones included.
        num_skipped: optimizer steps skipped for a non-finite gradient.
        num_left_out: updates that never began, because the KL had passed `kl_stop`.
        routing: (2, L, E) of all updates together, as `moe` has it; None without experts.
        mixed_loss: (), that of the demonstrations beside the rollouts, as `sums`.
        num_mixed_tokens: tokens that were learnt of them.
    """

    sums: Tensor
    logprobs: Tensor
    known: Tensor
    ratio_range: Tensor
    mixed_loss: Tensor
    gradient_norms: dict[str, list[float]] = field(default_factory=dict)
    num_updates: int = 0
    num_skipped: int = 0
    num_left_out: int = 0
    routing: Tensor | None = None
    num_mixed_tokens: int = 0


class Updater:
    """Trains networks on experience; `skips` counts the updates left out."""

    def __init__(self, networks: Networks, config: LearnerConfig, ranks: Ranks, *, seed: int) -> None:
        self._networks = networks
        self._config = config
        self._ranks = ranks
        self._seed = seed
        self.skips = SkipCounter(config.max_nonfinite_steps)

    def train(
        self, experience: Experience, rates: Rates, *, step: int, beside: WeightedDemonstrations | None = None
    ) -> Trace:
        """All epochs over `experience`; the trace is of every rank.

        Args:
            beside: demonstrations that the policy learns in the same updates, each in one of them; those of an update
                that is left out are not learnt.

        Raises:
            NonFiniteStep: too many updates in a row were skipped.
        """
        device = self._ranks.device
        experience = experience.to(device)
        trace = Trace(
            sums=torch.zeros(len(SUMS), dtype=torch.float64, device=device),
            logprobs=torch.zeros(experience.batch.num_actions, device=device),
            known=torch.zeros(len(experience.batch.token_ids), dtype=torch.bool),
            ratio_range=torch.zeros(2, device=device),
            mixed_loss=torch.zeros((), dtype=torch.float64, device=device),
        )
        self._networks.train()
        updates = [
            sequences
            for epoch in range(self._config.num_epochs)
            for sequences in self._minibatches(len(experience.batch.token_ids), step=step, epoch=epoch)
        ]
        trace.known[updates[0]] = True
        mixed = shares(beside.demonstrations, len(updates)) if beside else []
        rates = replace(rates, policy_weight=beside.policy_weight) if beside else rates
        for number, sequences in enumerate(updates, start=1):
            if beside:
                self._mix(mixed[number - 1], beside.coefficient, trace)
            sums = self._update(experience, sequences, rates, trace)
            trace.sums += sums
            if self._strayed(sums):
                trace.num_left_out = len(updates) - number
                break
        of_all = self._ranks.sum_shares
        trace.sums, trace.mixed_loss, trace.logprobs = map(of_all, (trace.sums, trace.mixed_loss, trace.logprobs))
        if trace.routing is not None:
            trace.routing = self._ranks.sum(trace.routing)
        trace.ratio_range = self._ranks.max(trace.ratio_range)
        return trace

    def _mix(self, demonstrations: Sequence[Demonstration], coefficient: float, trace: Trace) -> None:
        """Add the gradient of an update's demonstrations, before that of its rollouts."""
        loss, num_tokens = descend_demonstrations(
            demonstrations, coefficient, self._networks, self._config, self._ranks
        )
        trace.mixed_loss += loss
        trace.num_mixed_tokens += num_tokens

    def _minibatches(self, num_sequences: int, *, step: int, epoch: int) -> tuple[Tensor, ...]:
        if self._config.num_minibatches == 1:
            return (torch.arange(num_sequences),)
        order = list(range(num_sequences))
        random.Random(f"{self._seed}/{step}/{epoch}").shuffle(order)
        return torch.tensor_split(torch.tensor(order), min(self._config.num_minibatches, num_sequences))

    def _strayed(self, sums: Tensor) -> bool:
        """Whether the last update's tokens were already too far from the proximal policy; of every rank's tokens."""
        kl_stop = self._config.kl_stop
        return kl_stop is not None and float(self._ranks.sum_shares(sums)[SUMS.index("kl/old")]) > kl_stop

    def _update(self, experience: Experience, sequences: Tensor, rates: Rates, trace: Trace) -> Tensor:
        """One optimizer step of each network on some sequences of the batch; returns this rank's part of the means."""
        sums = torch.zeros_like(trace.sums)
        weights = self._weight_column(experience.batch, sequences)
        total, column = float(weights.sum()), weights.float().to(self._ranks.device)
        micro_batches = self._micro_batches(experience.batch, sequences.tolist())
        balanced = rates.train_policy and self._config.router_loss_coefficient
        routing = self._networks.routing(experience.batch, micro_batches) if balanced else None
        for number, part in enumerate(micro_batches, start=1):
            batch = collate(experience.batch, part, self._ranks.device, packed=self._networks.packed)
            here, last = column[batch.actions], number == len(micro_batches)
            if rates.train_policy:
                said, objective = self._descend_policy(batch, experience, here, rates, routing, last=last)
                sums += objective.sums
                trace.ratio_range = torch.maximum(trace.ratio_range, objective.ratio_range)
                if trace.num_updates == 0:
                    trace.logprobs[batch.actions] = said.logprobs.detach()
                if said.routing is not None:
                    trace.routing = said.routing.detach() + (0.0 if trace.routing is None else trace.routing)
            if self._networks.critic:
                objective = value_objective(self._networks.critic(batch), batch, experience, here, self._config)
                self._networks.critic.backward(objective.loss, last=last)
                sums += objective.sums
        self._apply(rates, trace)
        return sums / (total or 1.0)

    def _weight_column(self, batch: Batch, sequences: Tensor) -> Tensor:
        """(A,) what each token of the chosen sequences counts; nothing in one that is not learnt."""
        weights = torch.zeros(len(batch.token_ids), dtype=torch.float64)
        weights[sequences] = AGGREGATIONS[self._config.loss_aggregation](batch.learnt_counts[sequences], self._config)
        return batch.over_actions(weights * batch.learnt)

    def _micro_batches(self, batch: Batch, sequences: list[int]) -> list[list[int]]:
        """This rank's share of the chosen sequences."""
        lengths = batch.lengths
        plan = plan_micro_batches(
            [lengths[i] for i in sequences],
            max_tokens=self._config.max_tokens_per_pass,
            num_ranks=self._ranks.num_shares,
            packed=self._networks.packed,
        )
        return [[sequences[i] for i in part] for part in plan[self._ranks.share]]

    def _descend_policy(
        self,
        batch: MicroBatch,
        experience: Experience,
        weights: Tensor,
        rates: Rates,
        routing: Tensor | None,
        *,
        last: bool,
    ) -> tuple[PolicyOutcome, Objective]:
        """Add the gradient of the policy, and of what is beside it; returns what it said, and what was descended.

        Args:
            routing: (2, L, E) of the whole update, where routers have a loss.
        """
        said = self._networks.act(batch)
        objective = policy_objective(
            said.logprobs, said.entropy, batch, experience, weights, self._config, kl_coefficient=rates.kl_coefficient
        )
        loss, sums = rates.policy_weight * objective.loss, objective.sums
        if said.values is not None:
            beside = value_objective(said.values, batch, experience, weights, self._config)
            loss = loss + beside.loss
            sums = sums + beside.sums
        if routing is not None and said.routing is not None:
            loss = loss + self._config.router_loss_coefficient * balance_loss(said.routing, routing)
        self._networks.policy.backward(loss, last=last)
        return said, replace(objective, loss=loss, sums=sums)

    def _apply(self, rates: Rates, trace: Trace) -> None:
        updates = {}
        if rates.train_policy:
            updates["policy"] = self._networks.update_policy(rates.lr, rates.critic_lr)
        if self._networks.critic:
            updates["critic"] = self._networks.critic.update(rates.critic_lr)
        for name, update in updates.items():
            norms = {name: update.gradient_norm} | {f"{name}/{kind}": norm for kind, norm in update.norms.items()}
            for part, norm in norms.items():
                trace.gradient_norms.setdefault(part, []).append(norm)
        trace.num_updates += 1
        trace.num_skipped += not all(update.applied for update in updates.values())
        self.skips.count(updates)
