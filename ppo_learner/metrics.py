"""What a learner step measured, as plain numbers under stable names.

It must not know networks. Invariant: the numbers are the same on every rank, since every input is of the whole batch
already, or is asked of all ranks here. A sampled tokens of the batch.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from resource import RUSAGE_SELF, getrusage
from statistics import fmean
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from ppo_learner.batching import Batch
from ppo_learner.config import LearnerConfig
from ppo_learner.experience import Experience
from ppo_learner.importance import IMPORTANCE_CORRECTIONS, bounded_ratio, effective_sample_size
from ppo_learner.kl import k1, k3
from ppo_learner.moe import router_metrics
from ppo_learner.objective import SUMS
from ppo_learner.ranks import Ranks
from ppo_learner.updates import Rates, Trace
from services.contracts.records import ScoredGroup, WeightedDemonstrations


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyAtStart:
    """What the learner's policy said of the batch before the first update of the step.

    Attributes:
        logprobs: (A,); those of other completions than the known ones mean nothing.
        known: (B,) False on completions that it was not asked of before they were first trained on.
    """

    logprobs: Tensor
    known: Tensor


class Stopwatch:
    """Seconds of each named phase; `metrics` gives them as `seconds/learner/<phase>`."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        begin = perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] += perf_counter() - begin

    def metrics(self, *, num_tokens: int) -> dict[str, float]:
        """Seconds of each phase and of all, and tokens per second over all."""
        total = sum(self._seconds.values())
        phases = {f"seconds/learner/{phase}": seconds for phase, seconds in self._seconds.items()}
        return phases | {"learner/tokens": num_tokens, "learner/tokens_per_second": num_tokens / total}


def group_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Rewards, components, steps, completion lengths, turns, and groups whose totals teach a group baseline nothing."""
    rewards = [reward for scored in groups for reward in scored.rewards]
    values = np.array([reward.value for reward in rewards])
    rollouts = [rollout for scored in groups for rollout in scored.group.rollouts]
    lengths = [rollout.num_completion_tokens for rollout in rollouts]
    components: defaultdict[str, list[float]] = defaultdict(list)
    for reward in rewards:
        for name, value in reward.components.items():
            components[name].append(value)
    steps = [step.value for reward in rewards for step in reward.steps]
    turns = {"turns/mean": fmean(rollout.num_turns for rollout in rollouts)} if any(r.turns for r in rollouts) else {}
    # The total's own names come last, so that no component can take them.
    of_steps = {"process/step_reward": fmean(steps), "process/steps": len(steps) / len(rewards)} if steps else {}
    return (
        {f"reward/{name}": fmean(parts) for name, parts in components.items()}
        | of_steps
        | turns
        | {
            "reward/mean": values.mean(),
            "reward/std": values.std(),
            "completion_tokens/mean": fmean(lengths),
            "completion_tokens/max": max(lengths),
            "zero_variance_groups": fmean(scored.is_flat for scored in groups),
        }
    )


def experience_metrics(experience: Experience, start: PolicyAtStart) -> dict[str, float]:
    """Of learnt tokens, advantages and the critic's fit; of all that the policy at the step's start is known of, the KL
    to the reference, and how far the sampler's logprobs are from the learner's."""
    batch, logprobs = experience.batch, start.logprobs
    learnt, known = batch.learnt_actions, batch.over_actions(start.known)
    advantages = experience.raw_advantages[learnt]
    gap = (logprobs - experience.behaviour_logprobs)[known].abs()
    metrics = {
        "advantage/mean": float(advantages.mean()),
        "advantage/std": float(advantages.std(correction=0)),
        "advantage/min": float(advantages.min()),
        "advantage/max": float(advantages.max()),
        "sampler_gap/mean": float(gap.mean()),
        "sampler_gap/max": float(gap.max()),
    }
    if experience.reference_logprobs is not None:
        metrics["kl/reference"] = float(k3(logprobs, experience.reference_logprobs)[known].mean())
        metrics["kl/completion"] = kl_per_completion(batch, start, experience.reference_logprobs)
    if experience.returns is not None and experience.values is not None:
        returns, values = experience.returns[learnt], experience.values[learnt]
        residual = (returns - values).var(correction=0)
        variance = returns.var(correction=0)
        metrics["explained_variance"] = float(1 - residual / variance) if variance > 0 else 0.0
        metrics["value/mean"] = float(values.mean())
        metrics["return/mean"] = float(returns.mean())
        metrics["return/std"] = float(returns.std(correction=0))
    return metrics


def importance_metrics(experience: Experience, start: PolicyAtStart, config: LearnerConfig) -> dict[str, float]:
    """How far the learner's policy is from the one that sampled, and the weights with which the loss makes up for it,
    where the policy at the step's start is known."""
    batch, behaviour = experience.batch, experience.behaviour_logprobs
    known = batch.over_actions(start.known)
    sequences = batch.pad((start.logprobs - behaviour).double()).sum(dim=1)[start.known & (batch.counts > 0)]
    logprobs = start.logprobs[known]
    log_ratio = logprobs - behaviour[known]
    metrics = {
        "importance/ratio_max": float(bounded_ratio(log_ratio.max())),
        "importance/ratio_kl": float(k3(behaviour[known], logprobs).mean()),
        "importance/ratio_ess": effective_sample_size(bounded_ratio(log_ratio)),
        "importance/ratio_sequence_ess": effective_sample_size(bounded_ratio(sequences)),
    }
    if config.importance_correction == "none":
        return metrics
    proximal = experience.proximal_logprobs(logprobs, known.nonzero()[:, 0], config)
    rows = torch.repeat_interleave(batch.counts * start.known)
    weights, clipped = IMPORTANCE_CORRECTIONS[config.importance_correction](proximal - behaviour[known], rows, config)
    return metrics | {
        "importance/mean": float(weights.mean()),
        "importance/ess": effective_sample_size(weights),
        "importance/clipped": float(clipped.double().mean()),
    }


def kl_per_completion(batch: Batch, start: PolicyAtStart, reference_logprobs: Tensor) -> float:
    """Mean over known completions of Σ (log π − log π_ref), in nats: what an adaptive coefficient steers."""
    return float(batch.pad(k1(start.logprobs, reference_logprobs)).double().sum(dim=1)[start.known].mean())


def trace_metrics(trace: Trace, *, has_critic: bool, trained_policy: bool) -> dict[str, float]:
    """Losses and gradient norms, averaged over the step's updates, and extremes of the probability ratio; only of
    networks that were trained."""
    metrics: dict[str, float] = {}
    for name, value in zip(SUMS, trace.sums.tolist(), strict=True):
        if has_critic if name.startswith("value") else trained_policy:
            metrics[name] = value / trace.num_updates
    if trained_policy:
        below, above = trace.ratio_range
        metrics["ratio/min"] = 1 / float(bounded_ratio(below))
        metrics["ratio/max"] = float(bounded_ratio(above))
    for name, norms in trace.gradient_norms.items():
        finite = [norm for norm in norms if math.isfinite(norm)]
        metrics[f"gradient_norm/{name}"] = fmean(finite) if finite else math.inf
    if trace.routing is not None:
        metrics |= router_metrics(trace.routing)
    return metrics | {
        "updates": trace.num_updates,
        "updates_skipped": trace.num_skipped,
        "updates_left_out": trace.num_left_out,
    }


def mix_metrics(demonstrations: WeightedDemonstrations | None, trace: Trace) -> dict[str, float]:
    """Coefficient and learnt tokens of the demonstrations beside the rollouts, and their mean loss where there are any.

    Args:
        demonstrations: what the step was given; None in a run without any.
    """
    if demonstrations is None:
        return {}
    metrics = {
        "demonstrations/coefficient": demonstrations.coefficient,
        "demonstrations/tokens": float(trace.num_mixed_tokens),
    }
    if not trace.num_mixed_tokens:
        return metrics
    return metrics | {"demonstrations/loss": float(trace.mixed_loss) / trace.num_updates}


def rate_metrics(rates: Rates, *, has_critic: bool) -> dict[str, float]:
    """What the step trained with."""
    metrics = {"learning_rate": rates.lr, "kl_coefficient": rates.kl_coefficient}
    return metrics | ({"learning_rate/critic": rates.critic_lr} if has_critic else {})


def as_floats(metrics: Mapping[str, float]) -> dict[str, float]:
    """Plain floats, in order of name."""
    return {name: float(metrics[name]) for name in sorted(metrics)}


def peak_memory_bytes(ranks: Ranks) -> float:
    """The most memory that a rank has had: of its GPU, or resident where there is none. Every rank calls it."""
    if ranks.device.type == "cuda":
        own = float(torch.cuda.max_memory_allocated(ranks.device))
    else:
        own = getrusage(RUSAGE_SELF).ru_maxrss * 1024.0
    return float(ranks.max(torch.tensor([own], dtype=torch.float64)))
