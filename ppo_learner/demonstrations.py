"""Learning from demonstrations: the policy is to give their tokens more probability.

It must not know rewards or rollouts. Invariant: the loss is the cross-entropy −mean log π over the trained tokens.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ppo_learner.batching import batch_demonstrations, collate, plan_micro_batches
from ppo_learner.engine import Engine
from ppo_learner.models import PolicyOutcome, load_policy
from ppo_learner.moe import check_experts
from ppo_learner.publishing import export_network
from ppo_learner.ranks import Ranks
from ppo_learner.sequence_layout import lay_out
from ppo_learner.supervised_config import SupervisedConfig
from ppo_learner.task import Part, Questions
from services.contracts.errors import UserError
from services.contracts.records import Demonstration
from services.contracts.settings import ModelConfig


class DemonstrationTask:
    """Implements `Task` for a policy; that of a mixture of experts is kept balanced, too."""

    def __init__(self, learner: SupervisedConfig, model: ModelConfig, ranks: Ranks) -> None:
        self._learner = learner
        self._model = model
        self._ranks = ranks
        self._packed = False
        self._coefficient = learner.router_loss_coefficient
        self.network = load_policy(model, learner, ranks, temperature=1.0)
        check_experts(self.network.experts_per_token, self._coefficient, model.path)
        self.metrics = ("loss", *(["router/balance_loss"] if self.network.experts_per_token else []))
        self._language_model = self.network.language_model

    def lay_out(self, network: Engine) -> None:
        decoder = self._language_model.get_decoder()
        self._packed = lay_out(self._learner, self._model, network, [decoder], self._ranks)

    def work(self, examples: Sequence[Demonstration]) -> "DemonstrationWork":
        coefficient = self._coefficient if self.network.experts_per_token else None
        return demonstration_work(examples, router_loss_coefficient=coefficient, packed=self._packed)

    def export(self, network: Engine, ranks: Ranks, folder: Path) -> None:
        export_network(network, self._language_model, self._model, ranks, folder)


class DemonstrationWork:
    """Implements `Work`: an answer is the log-probability of a trained token, and each is a term."""

    def __init__(self, demonstrations: Sequence[Demonstration], *, packed: bool = False) -> None:
        self._packed = packed
        self._batch = batch_demonstrations(demonstrations)
        self.num_tokens = sum(self._batch.lengths)
        self.num_terms = self.num_answers = self._batch.num_actions
        if not self.num_terms:
            raise UserError(
                f"none of {len(demonstrations)} demonstrations has a token to learn; look at data.response_field"
            )

    def plan(self, *, max_tokens: int, num_ranks: int) -> list[list[Part]]:
        return plan_micro_batches(self._batch.lengths, max_tokens=max_tokens, num_ranks=num_ranks, packed=self._packed)

    def answer(self, network: Engine, part: Part, device: torch.device) -> tuple[Tensor, Tensor]:
        micro_batch = collate(self._batch, part, device, packed=self._packed)
        said = network(micro_batch, temperature=1.0, entropy=False)
        return _logprobs(said), micro_batch.actions

    def prepare(self, answers_of: Callable[[Questions], Tensor]) -> None:
        """Each part tells all that its loss needs."""

    def sums(self, answers: Tensor, part: Part) -> Tensor:
        return -answers.sum(dim=0, keepdim=True)


class RoutedDemonstrationWork(DemonstrationWork):
    """Implements `Work` for a mixture of experts.

    Behind a part's log-probabilities is for each the balance loss of the micro-batch that it was in.
    """

    def __init__(self, demonstrations: Sequence[Demonstration], coefficient: float, *, packed: bool = False) -> None:
        super().__init__(demonstrations, packed=packed)
        self._coefficient = coefficient

    def answer(self, network: Engine, part: Part, device: torch.device) -> tuple[Tensor, Tensor]:
        micro_batch = collate(self._batch, part, device, packed=self._packed)
        said = network(micro_batch, temperature=1.0, entropy=False)
        return torch.cat([_logprobs(said), said.routing.balance_loss.expand_as(said.logprobs)]), micro_batch.actions

    def sums(self, answers: Tensor, part: Part) -> Tensor:
        logprobs, balance_losses = answers.reshape(2, len(answers) // 2)
        return torch.stack([self._coefficient * balance_losses.sum() - logprobs.sum(), balance_losses.sum().detach()])


def _logprobs(said: PolicyOutcome) -> Tensor:
    """(N,) with a gradient of 0 for a value head, which learns nothing here: ZeRO-3 adds up wrong gradients where a
    sharded weight is left out of a backward pass."""
    return said.logprobs if said.values is None else said.logprobs + 0.0 * said.values


def demonstration_work(
    demonstrations: Sequence[Demonstration], *, router_loss_coefficient: float | None, packed: bool = False
) -> DemonstrationWork:
    """The work for a policy.

    Args:
        router_loss_coefficient: of its routers' balance loss; None where it has no experts.
        packed: whether sequences share a row.

    Raises:
        UserError: there is no token to learn.
    """
    if router_loss_coefficient is None:
        return DemonstrationWork(demonstrations, packed=packed)
    return RoutedDemonstrationWork(demonstrations, router_loss_coefficient, packed=packed)
