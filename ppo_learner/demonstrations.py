"""Learning from demonstrations: the policy is to give their tokens more probability.

It must not know rewards or rollouts. Invariant: the loss is the cross-entropy −mean log π over the trained tokens.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ppo_learner.batching import batch_demonstrations, collate, plan_micro_batches
from ppo_learner.engine import Engine
from ppo_learner.models import load_policy
from ppo_learner.optimizer_config import OptimizerConfig
from ppo_learner.publishing import export_network
from ppo_learner.ranks import Ranks
from ppo_learner.supervised import Part, Questions
from services.contracts.errors import UserError
from services.contracts.records import Demonstration
from services.contracts.settings import ModelConfig


class DemonstrationTask:
    """Implements `Task` for a policy."""

    metrics = ("loss",)

    def __init__(self, learner: OptimizerConfig, model: ModelConfig, ranks: Ranks) -> None:
        self._model = model
        self.network = load_policy(model, learner, temperature=1.0)
        self._language_model = self.network.language_model

    def work(self, examples: Sequence[Demonstration]) -> "DemonstrationWork":
        return DemonstrationWork(examples)

    def export(self, network: Engine, ranks: Ranks, folder: Path) -> None:
        export_network(network, self._language_model, self._model, ranks, folder)


class DemonstrationWork:
    """Implements `Work`: an answer is the log-probability of a trained token, and each is a term."""

    def __init__(self, demonstrations: Sequence[Demonstration]) -> None:
        self._batch = batch_demonstrations(demonstrations)
        self.num_tokens = sum(self._batch.lengths)
        self.num_terms = self.num_answers = self._batch.num_actions
        if not self.num_terms:
            raise UserError(
                f"none of {len(demonstrations)} demonstrations has a token to learn; look at data.response_field"
            )

    def plan(self, *, max_tokens: int, num_ranks: int) -> list[list[Part]]:
        return plan_micro_batches(self._batch.lengths, max_tokens=max_tokens, num_ranks=num_ranks)

    def answer(self, network: Engine, part: Part, device: torch.device) -> tuple[Tensor, Tensor]:
        micro_batch = collate(self._batch, part, device)
        logprobs, *_ = network(micro_batch)
        return logprobs, micro_batch.actions

    def prepare(self, answers_of: Callable[[Questions], Tensor]) -> None:
        """Each part tells all that its loss needs."""

    def sums(self, answers: Tensor, part: Part) -> Tensor:
        return -answers.sum(dim=0, keepdim=True)
