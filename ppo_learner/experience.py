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
from ppo_learner.return_moments import ReturnMoments
from ppo_learner.step_rewards import StepRewards, step_rewards
from services.contracts.errors import UserError
from services.contracts.records import ScoredGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What the networks say of a batch before an update, as columns (A,); None where nobody asked.

    `values` are on the critic's own scale, which is that of rewards unless returns are normalised.
    """

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
        old_values: of the critic before this step, on its own scale; None without a critic.
        targets: what the critic is to predict, on its own scale; None without one.
        values: the old values on the scale of rewards; None without a critic.
        returns: the targets on the scale of rewards; None without a critic.
        return_moments: with this step's returns taken in; where nothing is normalised, as they were.
    """

    batch: Batch
    advantages: Tensor
    raw_advantages: Tensor
    behaviour_logprobs: Tensor
    staleness: Tensor
    start_logprobs: Tensor | None
    reference_logprobs: Tensor | None
    old_values: Tensor | None
    targets: Tensor | None
    values: Tensor | None
    returns: Tensor | None
    return_moments: ReturnMoments

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
    return_moments: ReturnMoments,
) -> Experience:
    """Rewards, less the KL penalty where it belongs there, to advantages and returns.

    Args:
        version: the learner's before this step.
        kl_coefficient: the penalty's present weight.
        return_moments: of all returns before this step, on whose scale the critic predicted; read only where returns
            are normalised.

    Raises:
        UserError: a group too small for the algorithm, or steps that count and none that was given.
    """
    values = _values(batch, evaluation, config, return_moments)
    kl_penalty = _kl_penalty(batch, evaluation, config, kl_coefficient)
    episodes = _episodes(groups, batch, config, values=values, kl_penalty=kl_penalty)
    raw = ADVANTAGES[config.parts.advantage](episodes, config)
    advantages = whiten(raw, episodes.mask & batch.learnt[:, None]) if config.whiten_advantages else raw
    returns = None if values is None else batch.unpad(raw + values)
    targets, old_values = returns, evaluation.values
    if values is not None and returns is not None and config.normalise_returns:
        is_first = not return_moments.count
        return_moments = return_moments.merged(returns[batch.learnt_actions])
        targets = return_moments.normalise(returns)
        # A critic that no return gave a scale yet is not corrected to the new one: it goes on from what it said.
        old_values = evaluation.values if is_first else return_moments.normalise(batch.unpad(values))
    return Experience(
        batch=batch,
        advantages=batch.unpad(advantages).float(),
        raw_advantages=batch.unpad(raw).float(),
        behaviour_logprobs=sampler_logprobs(groups, batch),
        staleness=version + 1 - sampler_versions(groups, batch),
        start_logprobs=evaluation.logprobs,
        reference_logprobs=evaluation.reference_logprobs,
        old_values=None if old_values is None else old_values.float(),
        targets=None if targets is None else targets.float(),
        values=None if values is None else batch.unpad(values).float(),
        returns=None if returns is None else returns.float(),
        return_moments=return_moments,
    )


def _episodes(
    groups: Sequence[ScoredGroup], batch: Batch, config: LearnerConfig, *, values: Tensor | None, kl_penalty: Tensor
) -> Episodes:
    sizes = torch.tensor([len(scored.rewards) for scored in groups])
    steps = _steps(groups, batch) if config.uses_steps else None
    totals = _totals(groups, steps if config.total_includes_steps else None)
    length = length_rewards(groups, config)
    totals = totals if length is None else totals + length
    return Episodes(
        rewards=_token_rewards(totals, steps, batch, config) - kl_penalty,
        mask=batch.mask(),
        groups=torch.repeat_interleave(sizes),
        totals=totals,
        solved=_given_totals(groups) >= config.solved_reward,
        turn_ends=batch.turn_ends(),
        values=values,
        baselines=_baselines(groups, sizes, config) if config.parts.needs_greedy_baseline else None,
        steps=steps,
    )


def _values(
    batch: Batch, evaluation: Evaluation, config: LearnerConfig, return_moments: ReturnMoments
) -> Tensor | None:
    """(B, T) what the critic said, on the scale of rewards."""
    if evaluation.values is None:
        return None
    values = evaluation.values.double()
    return batch.pad(return_moments.restore(values) if config.normalise_returns else values)


def _baselines(groups: Sequence[ScoredGroup], sizes: Tensor, config: LearnerConfig) -> Tensor:
    """(B,) the weighted reward of the greedy answer to each completion's prompt."""
    baselines = [scored.baseline for scored in groups]
    if None in baselines:
        raise UserError(
            f"{baselines.count(None)} of {len(groups)} groups have no reward of a greedy answer, and learner.algorithm "
            f"{config.algorithm} takes it for its baseline; use an algorithm that needs none, such as rloo"
        )
    return config.total_weight * torch.tensor(baselines, dtype=torch.float64).repeat_interleave(sizes)


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
    totals = _given_totals(groups)
    return totals if included is None else totals - included.sums(len(totals))


def _given_totals(groups: Sequence[ScoredGroup]) -> Tensor:
    """(B,) as the reward service gave them."""
    return torch.tensor([reward.value for scored in groups for reward in scored.rewards], dtype=torch.float64)


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
