"""Learning from preferences: of two completions the preferred one is to become likelier than the other.

It must not know where preferences come from, nor a loss's formula. Invariants: an answer is the logprob of a whole
completion; a loss is the mean over all pairs, or over all completions with a label, and KTO's reference point is taken
over all of them, so no split of a step changes it.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ppo_learner.batching import batch_demonstrations, collate, plan_micro_batches
from ppo_learner.engine import Engine
from ppo_learner.models import load_policy
from ppo_learner.moe import check_experts
from ppo_learner.preference_config import PreferenceConfig
from ppo_learner.preference_losses import (
    PREFERENCE_LOSSES,
    JudgedLogprobs,
    kto_reference_point,
    nll_loss,
)
from ppo_learner.publishing import export_network
from ppo_learner.ranks import Ranks
from ppo_learner.sequence_layout import lay_out
from ppo_learner.task import Answer, Part, Questions
from services.contracts.preference_example import PreferenceExample
from services.contracts.records import Demonstration
from services.contracts.settings import ModelConfig

METRICS = (
    "loss",
    "accuracy",
    "rewards/margin",
    "rewards/chosen",
    "rewards/rejected",
    "logprobs/chosen",
    "logprobs/rejected",
)


class PreferenceTask:
    """Implements `Task` for a policy that learns from preferences."""

    metrics = METRICS

    def __init__(self, learner: PreferenceConfig, model: ModelConfig, ranks: Ranks) -> None:
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

    def work(self, examples: Sequence[PreferenceExample]) -> "PreferenceWork":
        return PreferenceWork(examples, self._learner, packed=self._packed)

    def export(self, network: Engine, ranks: Ranks, folder: Path) -> None:
        export_network(network, self._language_model, self._model, ranks, folder)


class CompletionWork:
    """Implements `Questions`: the logprobs of completions, those of an example together."""

    def __init__(self, completions: Sequence[Sequence[Demonstration]], *, packed: bool) -> None:
        """`completions`: those of each example, the same number of each; `packed`: whether they share a row."""
        self._packed = packed
        self._batch = batch_demonstrations([one for example in completions for one in example])
        self._width = len(completions[0])
        lengths = [[len(one.token_ids) for one in example] for example in completions]
        self._lengths = [sum(example) if packed else max(example) for example in lengths]
        self.num_tokens = sum(self._batch.lengths)
        self.num_answers = len(self._batch.token_ids)

    def plan(self, *, max_tokens: int, num_ranks: int) -> list[list[Part]]:
        widths = [1 if self._packed else self._width] * len(self._lengths)
        return plan_micro_batches(
            self._lengths, widths=widths, max_tokens=max_tokens, num_ranks=num_ranks, packed=self._packed
        )

    def answer(self, network: Engine, part: Part, device: torch.device) -> Answer:
        """Σ_t log π(y_t) of each of a part's completions."""
        places = self.places(part)
        micro_batch = collate(self._batch, places.tolist(), device, packed=self._packed)
        said = network(micro_batch, entropy=False)
        logprobs = said.logprobs.new_zeros(len(places)).index_add(0, micro_batch.rows, said.logprobs)
        return Answer(logprobs, places.to(device), said.routing)

    def places(self, part: Part) -> Tensor:
        """(n,) the completions of a part's examples."""
        first = torch.tensor(part, dtype=torch.int64) * self._width
        return (first[:, None] + torch.arange(self._width)).flatten()

    def num_learnt(self, part: Part) -> Tensor:
        """(E, K) tokens of each completion."""
        return self._batch.counts[self.places(part)].reshape(-1, self._width)


class PreferenceWork(CompletionWork):
    """Implements `Work`: an answer is a completion's logprob, and each row is a term."""

    def __init__(self, examples: Sequence[PreferenceExample], learner: PreferenceConfig, *, packed: bool) -> None:
        super().__init__([example.completions for example in examples], packed=packed)
        self._learner = learner
        self._examples = examples
        self._desirable = torch.tensor([[True, False] if e.desirable is None else [e.desirable] for e in examples])
        self._reference_point = torch.zeros(())
        self.num_terms = len(examples)

    def prepare(self, answers_of: Callable[[Questions], Tensor]) -> None:
        unrelated = [example.unrelated for example in self._examples if example.unrelated is not None]
        if unrelated:
            answers = answers_of(CompletionWork([[completion] for completion in unrelated], packed=self._packed))
            reference = torch.tensor([example.reference[-1] for example in self._examples])
            self._reference_point = kto_reference_point(answers - reference)

    def sums(self, values: Tensor, part: Part) -> Tensor:
        if not part:
            return values.sum().expand(len(METRICS))  # Zeros that keep the ranks' backwards in step.
        logprobs = self._judged(values, part)
        judged = PREFERENCE_LOSSES[self._learner.algorithm](logprobs, self._learner)
        losses = judged.losses + self._learner.nll_weight * nll_loss(logprobs)
        rewards = judged.rewards.detach()
        right = leads(rewards, logprobs, self._learner.scale).sign() / 2 + 0.5
        chosen, rejected = self._mean_terms(rewards, logprobs)
        of_policy = self._mean_terms(logprobs.policy.detach(), logprobs)
        return torch.stack([losses.sum(), right.sum(), chosen - rejected, chosen, rejected, *of_policy])

    def _judged(self, answers: Tensor, part: Part) -> JudgedLogprobs:
        policy = answers.reshape(len(part), -1)
        num_completions = policy.shape[1]
        nothing = (0.0,) * num_completions
        reference = [(self._examples[i].reference or nothing)[:num_completions] for i in part]
        device = answers.device
        return JudgedLogprobs(
            policy=policy,
            reference=torch.tensor(reference, device=device),
            num_tokens=self.num_learnt(part).to(device),
            desirable=self._desirable[list(part)].to(device),
            reference_point=self._reference_point.to(device),
        )

    def _mean_terms(self, values: Tensor, logprobs: JudgedLogprobs) -> tuple[Tensor, Tensor]:
        """What a part adds to the means over all desirable completions of the step, and over all others.

        Args:
            values: (E, K) one of each of the part's completions.
        """
        sides = (self._desirable, logprobs.desirable), (~self._desirable, ~logprobs.desirable)
        # The sums are divided by `num_terms`; a side that no row of the step is on has no mean.
        desirable, others = (
            values[of_part].sum() * (self.num_terms / int(of_step.sum()) if of_step.any() else math.nan)
            for of_step, of_part in sides
        )
        return desirable, others


def leads(rewards: Tensor, logprobs: JudgedLogprobs, scale: float) -> Tensor:
    """(E,) by how much each row is on the right side: the chosen reward over the rejected one, or a label's reward on
    its side of the reference point."""
    if rewards.shape[1] == 2:
        return rewards[:, 0] - rewards[:, 1]
    gain = rewards[:, 0] - scale * logprobs.reference_point
    return torch.where(logprobs.desirable[:, 0], gain, -gain)
