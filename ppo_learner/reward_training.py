"""Learning from judged completions: the reward model's scores are to agree with the judgements.

It must not know where judgements come from. Invariant: a loss is the mean over all comparisons, or over all labelled
completions or steps.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ppo_learner.batching import plan_micro_batches
from ppo_learner.engine import Engine
from ppo_learner.publishing import export_network
from ppo_learner.ranks import Ranks
from ppo_learner.reward_batching import RewardBatch
from ppo_learner.reward_config import RewardModelConfig
from ppo_learner.reward_losses import REWARD_LOSSES
from ppo_learner.reward_models import CLASSIFIER, load_reward_model
from ppo_learner.reward_objectives import RewardObjective
from ppo_learner.task import Answer, Part, Questions
from services.contracts.reward_example import RewardExample
from services.contracts.settings import ModelConfig


class RewardModelTask:
    """Implements `Task` for a reward model."""

    router_loss_coefficient = 0.0

    def __init__(self, learner: RewardModelConfig, model: ModelConfig, ranks: Ranks) -> None:
        self._model = model
        self._objective = learner.parts
        self.metrics = ("loss", "accuracy") if learner.parts.compares else ("loss",)
        self.network = load_reward_model(model, learner)

    def lay_out(self, network: Engine) -> None:
        """Sequences stand side by side."""

    def work(self, examples: Sequence[RewardExample]) -> "RewardModelWork":
        return RewardModelWork(examples, self._objective, padding=self.network.padding)

    def export(self, network: Engine, ranks: Ranks, folder: Path) -> None:
        export_network(network, self.network.classifier, self._model, ranks, folder, prefix=CLASSIFIER)


class RewardModelWork:
    """Implements `Work`: an answer is the score of a completion or step."""

    def __init__(self, examples: Sequence[RewardExample], objective: RewardObjective, *, padding: int) -> None:
        self._batch = RewardBatch(examples)
        self._objective = objective
        self._padding = padding
        self.num_tokens = sum(len(ids) for example in examples for ids in example.sequences)
        self.num_answers = self._batch.num_scores
        self.num_terms = len(examples) if objective.compares else self._batch.num_scores

    def plan(self, *, max_tokens: int, num_ranks: int) -> list[list[Part]]:
        batch = self._batch
        return plan_micro_batches(batch.lengths, widths=batch.widths, max_tokens=max_tokens, num_ranks=num_ranks)

    def answer(self, network: Engine, part: Part, device: torch.device) -> Answer:
        micro_batch = self._batch.collate(part, device, padding=self._padding)
        return Answer(network(micro_batch), micro_batch.places)

    def prepare(self, answers_of: Callable[[Questions], Tensor]) -> None:
        """Each part tells all that its loss needs."""

    def sums(self, values: Tensor, part: Part) -> Tensor:
        num_metrics = 2 if self._objective.compares else 1
        if not part:
            return values.sum().expand(num_metrics)  # Zeros that keep the ranks' backward passes in step.
        scores, targets, mask = self._batch.by_example(values, part)
        loss = REWARD_LOSSES[self._objective.loss](scores, targets, mask).sum()
        if num_metrics == 1:
            return loss[None]
        return torch.stack([loss, _share_in_order(scores.detach(), mask).sum()])


def _share_in_order(scores: Tensor, mask: Tensor) -> Tensor:
    """(E,) share of each example's pairs of which the better one is ahead; a tie counts half."""
    leads = scores[:, :, None] - scores[:, None, :]  # (E, K, K): of the row over the column
    is_pair = (mask[:, :, None] & mask[:, None, :]).triu(diagonal=1)
    right = torch.where(is_pair, leads.sign() / 2 + 0.5, 0.0).sum(dim=(1, 2))
    return right / is_pair.sum(dim=(1, 2)).clamp(min=1)
