"""The loss of one micro-batch, and the sums that become metrics.

It must not know networks, ranks or optimizers. Invariant: losses and sums carry the token weights of the whole
optimizer step, so added up over micro-batches and ranks they are its loss, and over the sum of all weights its means.
N sampled tokens of the micro-batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppo_learner.batching import MicroBatch
from ppo_learner.config import LearnerConfig
from ppo_learner.experience import Experience
from ppo_learner.importance import IMPORTANCE_CORRECTIONS
from ppo_learner.kl import KL_ESTIMATORS, k3
from ppo_learner.losses import POLICY_LOSSES
from ppo_learner.value_losses import value_loss

_CLIPPED = ("clip_fraction", "clip_fraction/low", "clip_fraction/high")
_OF_POLICY = ("policy_loss", "entropy", "kl/old", *_CLIPPED)
_OF_VALUES = ("value_loss", *(f"value_{name}" for name in _CLIPPED))
SUMS = (*_OF_POLICY, *_OF_VALUES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """A loss to descend, and what it was made of.

    Attributes:
        loss: carries the gradient.
        sums: (len(SUMS),), zero where a part is another objective's.
        ratio_range: (2,) how far the logarithm of the probability ratio went below 0, and above; 0 of values.
    """

    loss: Tensor
    sums: Tensor
    ratio_range: Tensor


def policy_objective(
    logprobs: Tensor,
    entropy: Tensor,
    batch: MicroBatch,
    experience: Experience,
    weights: Tensor,
    config: LearnerConfig,
    *,
    kl_coefficient: float,
) -> Objective:
    """Σ w·(ι·policy loss + β·KL − c·entropy), with the KL only where it is placed in the loss.

    ι is the importance weight, which makes samples of the behaviour policy count as samples of the proximal one.

    Args:
        logprobs: (N,) of the policy being trained.
        entropy: (N,).
        weights: (N,) what each token counts.
    """
    here = batch.actions
    proximal = experience.proximal_logprobs(logprobs.detach(), here, config)
    log_ratio = proximal - experience.behaviour_logprobs[here]
    importance = IMPORTANCE_CORRECTIONS[config.importance_correction](log_ratio, batch.rows, config).weights
    losses, clipped = POLICY_LOSSES[config.parts.loss](
        logprobs, proximal, experience.advantages[here], batch.rows, config
    )
    policy_loss = (weights * importance * losses).sum()
    mean_entropy = (weights * entropy).sum()
    loss = policy_loss - config.entropy_coefficient * mean_entropy
    if experience.reference_logprobs is not None and config.kl_placement == "loss":
        kl = KL_ESTIMATORS[config.kl_estimator](logprobs, experience.reference_logprobs[here])
        loss = loss + kl_coefficient * (weights * kl).sum()
    approximate_kl = (weights * k3(proximal, logprobs.detach())).sum()
    return Objective(
        loss=loss,
        sums=_sums(_OF_POLICY, policy_loss, mean_entropy, approximate_kl, *_clipped(weights, clipped)),
        ratio_range=_range(logprobs.detach() - proximal),
    )


def value_objective(
    values: Tensor, batch: MicroBatch, experience: Experience, weights: Tensor, config: LearnerConfig
) -> Objective:
    """c·Σ w·(value loss).

    Args:
        values: (N,) of the critic being trained.
        weights: (N,) what each token counts.
    """
    assert experience.old_values is not None and experience.targets is not None
    old_values, targets = experience.old_values[batch.actions], experience.targets[batch.actions]
    losses, clipped = value_loss(values, old_values, targets, config)
    loss = (weights * losses).sum()
    return Objective(
        loss=config.value_coefficient * loss,
        sums=_sums(_OF_VALUES, loss, *_clipped(weights, clipped)),
        ratio_range=torch.zeros(2, device=values.device),
    )


def _clipped(weights: Tensor, clipped: Tensor) -> Sequence[Tensor]:
    """What the tokens count that any bound holds, that the lower one does, and that the upper one does."""
    return [(weights * held).sum() for held in (clipped != 0, clipped < 0, clipped > 0)]


def _sums(names: Sequence[str], *parts: Tensor) -> Tensor:
    """(len(SUMS),) these parts under their names, and 0 under the others."""
    named = dict(zip(names, parts, strict=True))
    nothing = torch.zeros((), device=parts[0].device)
    return torch.stack([named.get(name, nothing).detach().float() for name in SUMS]).double()


def _range(log_ratio: Tensor) -> Tensor:
    """(N,) → (2,) the largest of −x and of x, 0 at least."""
    nothing = torch.zeros(1, device=log_ratio.device)
    return torch.stack([torch.cat([nothing, sign * log_ratio.float()]).max() for sign in (-1, 1)])
