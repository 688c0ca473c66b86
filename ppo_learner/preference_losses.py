"""Losses of preference training, from the logprobs of whole completions.

They must not know models, ranks or how examples are averaged. Invariant: the loss of a pair looks at that pair alone;
what KTO knows of the other examples is one number, without gradient, that is the same for all of them. E examples, K
completions of each: 2 of a pair, the chosen one first, or 1 with a label.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ppo_learner.preference_config import PreferenceConfig

_CERTAIN = -1e-6
"""Mean logprob above which a completion counts as certain: its odds would be infinite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedLogprobs:
    """What the losses look at.

    Attributes:
        policy: (E, K) Σ_t log π(y_t | x, y_<t); carries the gradient.
        reference: (E, K) the same of the initial policy; zeros where the loss needs none.
        num_tokens: (E, K) tokens of each completion.
        desirable: (E, K) the label of each completion; of a pair True and False.
        reference_point: () KTO's estimate of KL(π ‖ π_ref), without gradient; not used by pairs.
    """

    policy: Tensor
    reference: Tensor
    num_tokens: Tensor
    desirable: Tensor
    reference_point: Tensor

    @property
    def log_ratios(self) -> Tensor:
        """(E, K) log π(y|x)/π_ref(y|x)."""
        return self.policy - self.reference

    @property
    def means(self) -> Tensor:
        """(E, K) mean logprob of a token."""
        return self.policy / self.num_tokens


class Judged(NamedTuple):
    """Loss of each example (E,), and the implicit reward of each completion (E, K), whose lead the loss widens."""

    losses: Tensor
    rewards: Tensor


def dpo_loss(logprobs: JudgedLogprobs, config: PreferenceConfig) -> Judged:
    """DPO (Rafailov et al. 2023, arXiv 2305.18290), equation 7: −log σ(β·log π_w/π_ref,w − β·log π_l/π_ref,l).

    With preferences of Bradley and Terry its minimum is π ∝ π_ref·exp(r/β). Some surveys print it without the −log;
    the paper is followed.
    """
    rewards = config.scale * logprobs.log_ratios
    return Judged(-functional.logsigmoid(_lead(rewards)), rewards)


def cdpo_loss(logprobs: JudgedLogprobs, config: PreferenceConfig) -> Judged:
    """Conservative DPO: −(1 − ε)·log σ(h) − ε·log σ(−h), h being DPO's lead, ε the share of wrong labels.

    Mitchell 2023, A note on DPO with noisy preferences. The lead ends where σ(h) = 1 − ε for pairs that always agree.
    """
    rewards = config.scale * logprobs.log_ratios
    right, wrong = _both_ways(rewards)
    return Judged((1 - config.label_smoothing) * right + config.label_smoothing * wrong, rewards)


def robust_dpo_loss(logprobs: JudgedLogprobs, config: PreferenceConfig) -> Judged:
    """Robust DPO (Chowdhury et al. 2024, arXiv 2403.00409): ((1 − ε)·L(h) − ε·L(−h)) / (1 − 2ε).

    L(h) = −log σ(h) is DPO's loss. Labels that are flipped with probability ε have its expectation of true ones.
    """
    rewards = config.scale * logprobs.log_ratios
    right, wrong = _both_ways(rewards)
    flipped = config.label_smoothing
    return Judged(((1 - flipped) * right - flipped * wrong) / (1 - 2 * flipped), rewards)


def ipo_loss(logprobs: JudgedLogprobs, config: PreferenceConfig) -> Judged:
    """IPO (Azar et al. 2023, arXiv 2310.12036), equation 17: (log π_w/π_ref,w − log π_l/π_ref,l − 1/(2τ))².

    τ is `beta`. Its minimum is π ∝ π_ref·exp(p*(y ≻ μ)/τ), μ being where rivals come from, so that pairs that always
    agree pull no further. The logprobs are of whole completions, as in the paper, not means of their tokens.
    """
    lead = _lead(logprobs.log_ratios) - 1 / (2 * config.scale)
    return Judged(lead.square(), config.scale * logprobs.log_ratios)


def simpo_loss(logprobs: JudgedLogprobs, config: PreferenceConfig) -> Judged:
    """SimPO (Meng et al. 2024, arXiv 2405.14734), equation 6: −log σ(β/|y_w|·log π_w − β/|y_l|·log π_l − γ)."""
    rewards = config.scale * logprobs.means
    return Judged(-functional.logsigmoid(_lead(rewards) - config.target_margin), rewards)


def orpo_loss(logprobs: JudgedLogprobs, config: PreferenceConfig) -> Judged:
    """ORPO (Hong et al. 2024, arXiv 2403.07691), equations 6 and 7: −log P_w − λ·log σ(log odds_w/odds_l).

    P is the exponential of a completion's mean logprob (equation 2), odds = P/(1 − P) (equation 3); some surveys print
    a ratio of probabilities. An implicit reward is the log of the odds.
    """
    means = logprobs.means.clamp(max=_CERTAIN)
    log_odds = means - torch.log(-torch.expm1(means))
    losses = nll_loss(logprobs) - config.odds_ratio_weight * functional.logsigmoid(_lead(log_odds))
    return Judged(losses, log_odds)


def kto_loss(logprobs: JudgedLogprobs, config: PreferenceConfig) -> Judged:
    """KTO (Ethayarajh et al. 2024, arXiv 2402.01306), section 4: λ_y − v.

    v = λ_D·σ(β·(r − z)) of a desirable completion and λ_U·σ(β·(z − r)) of an undesirable one; r = log π/π_ref, and z
    is the batch's estimate of KL(π ‖ π_ref), through which no gradient goes.
    """
    ratios = logprobs.log_ratios[:, 0]
    gain = config.scale * (ratios - logprobs.reference_point)
    desirable = config.desirable_weight * torch.sigmoid(-gain)  # λ − λ·σ(x) = λ·σ(−x)
    undesirable = config.undesirable_weight * torch.sigmoid(gain)
    losses = torch.where(logprobs.desirable[:, 0], desirable, undesirable)
    return Judged(losses, config.scale * logprobs.log_ratios)


def nll_loss(logprobs: JudgedLogprobs) -> Tensor:
    """(E,) −log π per token of the chosen completion: ORPO's likelihood, and the term that RPO puts beside DPO.

    Pang et al. 2024, arXiv 2404.19733, equation 1, weigh DPO with α beside it; `nll_weight` is 1/α.
    """
    return -logprobs.means[:, 0]


def kto_reference_point(log_ratios: Tensor) -> Tensor:
    """KTO's z = max(0, mean of log π(y'|x)/π_ref(y'|x)) over completions y' of other prompts than x. (N,) → ()."""
    return log_ratios.detach().mean().clamp(min=0)


def _lead(scores: Tensor) -> Tensor:
    """(E, 2) → (E,): of the chosen completion over the rejected one."""
    return scores[:, 0] - scores[:, 1]


def _both_ways(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """(E,) DPO's loss of the pairs as they are, and of the pairs the other way round."""
    lead = _lead(rewards)
    return -functional.logsigmoid(lead), -functional.logsigmoid(-lead)


PREFERENCE_LOSSES: dict[str, Callable[[JudgedLogprobs, PreferenceConfig], Judged]] = {
    "dpo": dpo_loss,
    "cdpo": cdpo_loss,
    "robust_dpo": robust_dpo_loss,
    "ipo": ipo_loss,
    "simpo": simpo_loss,
    "orpo": orpo_loss,
    "kto": kto_loss,
}
