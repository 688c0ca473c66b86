"""Learning from a teacher: on demonstrations the student's distributions are to become the teacher's.

It must not know where demonstrations come from, nor a divergence's formula. Invariants: the loss of a learnt token is
(1 − w) · (−log π) + w · τ² · D, with the teacher's weight w and temperature τ and the divergence D at that temperature
(the τ² keeps its gradient's size, arXiv 1503.02531, section 2); the loss is the mean over all learnt tokens; the
teacher never changes, and is not part of what is saved.
"""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppo_learner.batching import MicroBatch, collate
from ppo_learner.demonstrations import DemonstrationWork
from ppo_learner.distillation_head import DistillationHead
from ppo_learner.engine import Engine, shard_frozen
from ppo_learner.models import check_head, load_network, load_policy, target_states
from ppo_learner.publishing import export_network
from ppo_learner.ranks import Ranks
from ppo_learner.supervised_config import SupervisedConfig
from ppo_learner.task import Answer, Part
from ppo_learner.teacher_config import TeacherConfig
from ppo_learner.token_head import OutputLayer
from services.contracts.records import Demonstration
from services.contracts.settings import ModelConfig


class Student(nn.Module):
    """A causal language model that answers with logprobs of given tokens and its divergence from a teacher.

    Args:
        language_model: a transformers causal language model.
        teacher: how the two are compared.
    """

    def __init__(self, language_model: Any, teacher: TeacherConfig) -> None:  # Any: transformers
        super().__init__()
        self.language_model = language_model
        self.head = DistillationHead(language_model.get_output_embeddings(), language_model.config, teacher)

    def forward(self, batch: MicroBatch, teacher_states: Tensor, teacher_head: OutputLayer) -> tuple[Tensor, Tensor]:
        """Logprobs (N,) and divergences (N,) of a micro-batch's learnt tokens."""
        states = target_states(self.language_model.get_decoder(), batch)
        outcome: tuple[Tensor, Tensor] = self.head(states, batch.targets, teacher_states, teacher_head)
        return outcome


class Teacher:
    """A frozen causal language model: its transformer, sharded like the student's, and its head, whole on each rank."""

    def __init__(self, learner: SupervisedConfig, model: ModelConfig, ranks: Ranks) -> None:
        network = load_network("AutoModelForCausalLM", model.path, model, learner).requires_grad_(False).eval()
        output = network.get_output_embeddings()
        # A head that is also the embedding would be cut up with it.
        output = deepcopy(output) if learner.zero_stage == 3 else output
        self.head = OutputLayer(output, network.config)
        check_head(network, self.head, model.path)
        self.head.to(ranks.device)
        self._transformer = shard_frozen(_Transformer(network.get_decoder()), ranks, learner)

    @torch.no_grad()
    def states(self, batch: MicroBatch) -> Tensor:
        """(N, G) last hidden states at the positions that predict the learnt tokens. Every rank calls it."""
        states: Tensor = self._transformer(batch)
        return states


class _Transformer(nn.Module):
    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, batch: MicroBatch) -> Tensor:
        return target_states(self.decoder, batch)


class DistillationTask:
    """Implements `Task` for a student."""

    metrics = ("loss", "cross_entropy", "teacher_divergence")
    router_loss_coefficient = 0.0

    def __init__(self, learner: SupervisedConfig, model: ModelConfig, ranks: Ranks) -> None:
        assert learner.teacher is not None
        self._model = model
        self._config = learner.teacher
        self._language_model = load_policy(model, learner, ranks, temperature=1.0).language_model
        self.network = Student(self._language_model, learner.teacher)
        changes = {"path": learner.teacher.path, "revision": learner.teacher.revision, "tokenizer": None}
        self._teacher = Teacher(learner, model.model_copy(update=changes), ranks)

    def lay_out(self, network: Engine) -> None:
        """Sequences stand side by side."""

    def work(self, examples: Sequence[Demonstration]) -> "DistillationWork":
        return DistillationWork(examples, self._teacher, self._config)

    def export(self, network: Engine, ranks: Ranks, folder: Path) -> None:
        export_network(network, self._language_model, self._model, ranks, folder)


class DistillationWork(DemonstrationWork):
    """Implements `Work`: the answers are first all log-probabilities of learnt tokens, then all divergences."""

    def __init__(self, demonstrations: Sequence[Demonstration], teacher: Teacher, config: TeacherConfig) -> None:
        super().__init__(demonstrations)
        self.num_answers = 2 * self.num_terms
        self._teacher = teacher
        self._config = config

    def answer(self, network: Engine, part: Part, device: torch.device) -> Answer:
        micro_batch = collate(self._batch, part, device)
        outcome = network(micro_batch, self._teacher.states(micro_batch), self._teacher.head)
        return Answer(torch.cat(outcome), torch.cat([micro_batch.actions, micro_batch.actions + self.num_terms]))

    def sums(self, values: Tensor, part: Part) -> Tensor:
        logprobs, divergences = values.reshape(2, len(values) // 2)
        cross_entropy, divergence = -logprobs.sum(), divergences.sum()
        weight = self._config.weight
        loss = (1 - weight) * cross_entropy + weight * self._config.temperature**2 * divergence
        return torch.stack([loss, cross_entropy.detach(), divergence.detach()])
