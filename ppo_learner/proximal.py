"""The policy from which an update may not stray: the denominator of PPO's ratio, apart from the policy that sampled.

It must not know networks, losses or ranks. Decoupled PPO (Hilton et al. 2021, arXiv 2110.00641; for language models
AReaL, Fu et al. 2025, arXiv 2505.24298) has three policies a token: the behaviour policy μ, which sampled it; the
proximal one, which anchors the clip; and π_θ, which is trained. Invariant: what is returned carries no gradient.
N tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def recomputed(current: Tensor, start: Tensor | None, behaviour: Tensor, staleness: Tensor) -> Tensor:
    """The learner's policy at the start of the step.

    Args:
        current: (N,) logprobs under π_θ.
        start: (N,) the same before the step's first update; None where there is but one update, so that π_θ is it.
        behaviour: (N,) logprobs under μ, as the sampler reported them.
        staleness: (N,) the version that the step makes, less the token's: 1 for a fresh token.
    """
    return current.detach() if start is None else start


def sampler(current: Tensor, start: Tensor | None, behaviour: Tensor, staleness: Tensor) -> Tensor:
    """The behaviour policy itself: plain PPO, whose ratio π_θ/μ corrects and clips at once. Arguments as above."""
    return behaviour


def interpolated(current: Tensor, start: Tensor | None, behaviour: Tensor, staleness: Tensor) -> Tensor:
    """log π_prox = (1/d)·log μ + (1 − 1/d)·log π_θ with d the staleness: A-3PO (Li et al. 2025, arXiv 2512.06547).

    The proximal policy is one version behind the one that the step makes, so it lies at 1 − 1/d of the way from μ to
    there; for a fresh token it is μ. It takes no forward pass. Arguments as above; a token that is newer than the
    learner, which a learner that was restored can meet, counts as fresh.
    """
    return torch.lerp(behaviour, current.detach(), 1 - 1 / staleness.clamp(min=1).to(behaviour.dtype))


PROXIMAL_POLICIES: dict[str, Callable[[Tensor, Tensor | None, Tensor, Tensor], Tensor]] = {
    "recomputed": recomputed,
    "sampler": sampler,
    "interpolated": interpolated,
}
