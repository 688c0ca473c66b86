"""From rewards and evaluations to what the losses need: the policies' logprobs, advantages and returns, as columns.

It must not know networks, ranks or micro-batches. Invariant: everything here is a function of the whole batch, computed
alike on every rank, so no number of ranks changes it. B sequences, T sampled tokens of the longest, A of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ppo_learner.advantages import ADVANTAGES, Episodes, whiten
from ppo_learner.batching import Batch, sampler_logprobs, sampler_versions
from ppo_learner.config import LearnerConfig
from ppo_learner.kl import KL_ESTIMATORS
from ppo_learner.overlong import length_rewards
from ppo_learner.proximal import PROXIMAL_POLICIES
from ppo_learner.step_rewards import StepRewards, step_rewards
from services.contracts.errors import UserError
from services.contracts.records import ScoredGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What the networks say of a batch before an update, as columns (A,); None where nobody asked."""

    logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    values: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Experience:
    """A batch ready to be trained on; every column is (A,).

    Attributes:
        batch: the sequences.
        advantages: how much better each token was than expected.
        raw_advantages: the same before whitening, for metrics.
        behaviour_logprobs: of the policy that sampled, as the rollout engine reported them.
        staleness: the version that this step makes, less that of the policy that sampled: 1 for a fresh token.
        start_logprobs: of the policy before this step; None where nobody asked, as with a single update.
        reference_logprobs: of the reference; None without a KL penalty.
        old_values: of the critic before this step; None without a critic.
        returns: targets of the critic; None without one.
    """

    batch: Batch
    advantages: Tensor
    raw_advantages: Tensor
    behaviour_logprobs: Tensor
    staleness: Tensor
    start_logprobs: Tensor | None
    reference_logprobs: Tensor | None
    old_values: Tensor | None
    returns: Tensor | None

    def proximal_logprobs(self, current: Tensor, actions: Tensor, config: LearnerConfig) -> Tensor:
        """(N,) of the policy that the ratio compares with.

        Args:
            current: (N,) logprobs under the policy being trained.
            actions: (N,) where those tokens lie in the columns.
        """
        start = None if self.start_logprobs is None else self.start_logprobs[actions]
        return PROXIMAL_POLICIES[config.proximal or "recomputed"](
            current, start, self.behaviour_logprobs[actions], self.staleness[actions]
        )

    def to(self, device: torch.device) -> "Experience":
        """The same with its columns on another device."""
        columns: dict[str, Any] = {  # Any: names and values are this class's own
            field.name: column.to(device)
            for field in fields(self)
            if isinstance(column := getattr(self, field.name), Tensor)
        }
        return replace(self, **columns)


def make_experience(
    groups: Sequence[ScoredGroup],
    batch: Batch,
    evaluation: Evaluation,
    config: LearnerConfig,
    *,
    version: int,
    kl_coefficient: float,
) -> Experience:
    """Rewards, less the KL penalty where it belongs there, to advantages and returns.

    Args:
        version: the learner's before this step.
        kl_coefficient: the penalty's present weight.

    Raises:
        UserError: a group too small for the algorithm, or steps that count and none that was given.
    """
    mask = batch.mask()
    steps = _steps(groups, batch) if config.uses_steps else None
    totals = _totals(groups, steps if config.total_includes_steps else None)
    length = length_rewards(groups, config)
    totals = totals if length is None else totals + length
    values = None if evaluation.values is None else batch.pad(evaluation.values.double())
    episodes = Episodes(
        rewards=_token_rewards(totals, steps, batch, config) - _kl_penalty(batch, evaluation, config, kl_coefficient),
        mask=mask,
        groups=torch.repeat_interleave(torch.tensor([len(scored.rewards) for scored in groups])),
        values=values,
        totals=totals,
        steps=steps,
    )
    raw = ADVANTAGES[config.parts.advantage](episodes, config)
    advantages = whiten(raw, mask) if config.whiten_advantages else raw
    return Experience(
        batch=batch,
        advantages=batch.unpad(advantages).float(),
        raw_advantages=batch.unpad(raw).float(),
        behaviour_logprobs=sampler_logprobs(groups, batch),
        staleness=version + 1 - sampler_versions(groups, batch),
        start_logprobs=evaluation.logprobs,
        reference_logprobs=evaluation.reference_logprobs,
        old_values=evaluation.values,
        returns=None if values is None else batch.unpad(raw + values).float(),
    )


def _steps(groups: Sequence[ScoredGroup], batch: Batch) -> StepRewards:
    steps = step_rewards(groups, batch)
    if not len(steps.values):
        raise UserError(
            f"none of {len(batch.lengths)} completions has rewards for its steps, and learner.step_weight has them "
            "count; use a reward that gives steps, or an algorithm and weights that learn from totals alone"
        )
    return steps


def _totals(groups: Sequence[ScoredGroup], included: StepRewards | None) -> Tensor:
    """(B,) what each completion earned as a whole, less the steps that are included in it."""
    totals = torch.tensor([reward.value for scored in groups for reward in scored.rewards], dtype=torch.float64)
    return totals if included is None else totals - included.sums(len(totals))


def _token_rewards(totals: Tensor, steps: StepRewards | None, batch: Batch, config: LearnerConfig) -> Tensor:
    """(B, T) each step's reward on its last token, and the total on the completion's last.

    A completion without a sampled token keeps its rewards in column 0, where the group's mean still sees them.
    """
    rewards = torch.zeros(batch.mask().shape, dtype=torch.float64)
    rewards[torch.arange(len(totals)), (batch.counts - 1).clamp(min=0)] = config.total_weight * totals
    return rewards if steps is None else rewards + config.step_weight * steps.spread(steps.values, batch.mask())


def _kl_penalty(batch: Batch, evaluation: Evaluation, config: LearnerConfig, kl_coefficient: float) -> Tensor:
    """(B, T) what every token loses for its distance from the reference; 0 where the penalty stands in the loss."""
    if evaluation.reference_logprobs is None or config.kl_placement != "reward":
        return torch.zeros((), dtype=torch.float64)
    assert evaluation.logprobs is not None
    kl = KL_ESTIMATORS[config.kl_estimator](evaluation.logprobs, evaluation.reference_logprobs)
    return kl_coefficient * batch.pad(kl.double())
