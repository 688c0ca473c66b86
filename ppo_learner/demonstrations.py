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
from ppo_learner.task import Answer, Part, Questions
from services.contracts.errors import UserError
from services.contracts.records import Demonstration
from services.contracts.settings import ModelConfig


class DemonstrationTask:
    """Implements `Task` for a policy."""

    metrics = ("loss",)

    def __init__(self, learner: SupervisedConfig, model: ModelConfig, ranks: Ranks) -> None:
        self._learner = learner
        self._model = model
        self._ranks = ranks
        self._packed = False
        self.router_loss_coefficient = learner.router_loss_coefficient
        self.network = load_policy(model, learner, ranks, temperature=1.0)
        check_experts(self.network.experts_per_token, learner.router_loss_coefficient, model.path)
        self._language_model = self.network.language_model

    def lay_out(self, network: Engine) -> None:
        decoder = self._language_model.get_decoder()
        self._packed = lay_out(self._learner, self._model, network, [decoder], self._ranks)

    def work(self, examples: Sequence[Demonstration]) -> "DemonstrationWork":
        return DemonstrationWork(examples, packed=self._packed)

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

    def answer(self, network: Engine, part: Part, device: torch.device) -> Answer:
        micro_batch = collate(self._batch, part, device, packed=self._packed)
        said = network(micro_batch, temperature=1.0, entropy=False)
        return Answer(_logprobs(said), micro_batch.actions, said.routing)

    def prepare(self, answers_of: Callable[[Questions], Tensor]) -> None:
        """Each part tells all that its loss needs."""

    def sums(self, values: Tensor, part: Part) -> Tensor:
        return -values.sum(dim=0, keepdim=True)


def _logprobs(said: PolicyOutcome) -> Tensor:
    """(N,) with a gradient of 0 for a value head, which learns nothing here: ZeRO-3 adds up wrong gradients where a
    sharded weight is left out of a backward pass."""
    return said.logprobs if said.values is None else said.logprobs + 0.0 * said.values
