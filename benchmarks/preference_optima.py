"""What each preference method's paper predicts on a bandit: its loss, written from the paper, minimised in NumPy.

It must not import ppo_learner: the two share nothing but the papers. A policy is the probabilities of K completions of
two tokens each, and of everything else together; `counts` (K, K) says how often the row won against the column.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Loss = Callable[[Floats, Floats, Floats], float]
"""Of the logprobs (K,), those of the reference (K,), and the counts (K, K)."""

REWARDS = np.log([1.0, 2.0, 4.0])
"""The chances of Bradley and Terry are 2/3 and 4/5, so that 30 preferences of a pair can be divided exactly; with an
eighth of them the wrong way round they are 5/8 and 29/40, for which it takes 40."""
NUM_TOKENS = 2
SMOOTHING = 0.125


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A method with its settings.

    Attributes:
        learner: settings of the section `learner`.
        loss: from the paper; None where it has no minimum within reach.
        flipped: share of the preferences that are the wrong way round.
        exact: preferences are not drawn but divided as the chances are.
        num_draws: preferences of each pair.
        population: logarithm of how the paper's optimum departs from the reference, with the true chances; None where
            the paper gives none.
        rivals: the completions that preferences are between; distances are over these alone.
    """

    learner: Mapping[str, Any]  # Any: settings are of many kinds
    loss: Loss | None = None
    flipped: float = 0.0
    exact: bool = False
    num_draws: int = 30
    population: Floats | None = field(default=None)
    rivals: Sequence[int] = range(len(REWARDS))


def chances(*, flipped: float = 0.0) -> Floats:
    """(K, K) the chance that the row is written down as better than the column, by Bradley and Terry."""
    true = _sigmoid(REWARDS[:, None] - REWARDS[None, :])
    return (1 - flipped) * true + flipped * true.T


def optimum(loss: Loss, reference: Floats, counts: Floats) -> Floats:
    """(K,) logprobs of the policy that minimises a loss: damped Newton steps on the logits, from the reference."""
    logits = np.append(reference, np.log(max(1 - np.exp(reference).sum(), 1e-3)))

    def value(at: Floats) -> float:
        return loss((at - np.logaddexp.reduce(at))[:-1], reference, counts / counts.sum())

    damping = 1e-2
    for _ in range(400):
        slope, curvature = _derivatives(value, logits)
        trial = logits - np.linalg.solve(curvature + damping * np.eye(len(logits)), slope)
        if value(trial) < value(logits):
            logits, damping = trial, damping / 3
        else:
            damping *= 5
        if np.abs(slope).max() < 1e-7:
            break
    return (logits - np.logaddexp.reduce(logits))[:-1]


def restricted(logprobs: Floats) -> Floats:
    """The distribution over the K completions alone."""
    weights = np.exp(logprobs - logprobs.max())
    shares: Floats = weights / weights.sum()
    return shares


def total_variation(some: Floats, others: Floats) -> float:
    """Largest difference of the chances of any event, over the K completions alone."""
    return float(np.abs(restricted(some) - restricted(others)).sum() / 2)


def dpo(beta: float, *, right: float = 1.0, wrong: float = 0.0) -> Loss:
    """−right·log σ(β·Δ) − wrong·log σ(−β·Δ), Δ being the winner's log ratio less the loser's."""

    def loss(policy: Floats, reference: Floats, counts: Floats) -> float:
        lead = beta * _leads(policy - reference)
        return float((counts * (right * np.log1p(np.exp(-lead)) + wrong * np.log1p(np.exp(lead)))).sum())

    return loss


def ipo(tau: float) -> Loss:
    return lambda policy, reference, counts: float((counts * (_leads(policy - reference) - 0.5 / tau) ** 2).sum())


def simpo(beta: float, margin: float) -> Loss:
    return lambda policy, _, counts: float(
        (counts * np.log1p(np.exp(margin - beta * _leads(policy / NUM_TOKENS)))).sum()
    )


def orpo(weight: float) -> Loss:
    def loss(policy: Floats, _: Floats, counts: Floats) -> float:
        mean = policy / NUM_TOKENS
        odds = mean - np.log(-np.expm1(np.minimum(mean, -1e-9)))
        return nll(policy, _, counts) + weight * float((counts * np.log1p(np.exp(-_leads(odds)))).sum())

    return loss


def nll(policy: Floats, _: Floats, counts: Floats) -> float:
    """−log π of the winner, per token."""
    return float(-(counts * policy[:, None]).sum() / NUM_TOKENS)


def _with_nll(loss: Loss, weight: float) -> Loss:
    return lambda policy, reference, counts: loss(policy, reference, counts) + weight * nll(policy, reference, counts)


def _leads(scores: Floats) -> Floats:
    leads: Floats = scores[:, None] - scores[None, :]
    return leads


def _sigmoid(x: Floats) -> Floats:
    result: Floats = 1 / (1 + np.exp(-x))
    return result


def _derivatives(value: Callable[[Floats], float], at: Floats, step: float = 1e-4) -> tuple[Floats, Floats]:
    """Gradient and Hessian by central differences."""
    steps = step * np.eye(len(at))
    slope = np.array([(value(at + h) - value(at - h)) / (2 * step) for h in steps])
    curvature = np.array(
        [
            [
                (value(at + h + g) - value(at + h - g) - value(at - h + g) + value(at - h - g)) / (4 * step**2)
                for g in steps
            ]
            for h in steps
        ]
    )
    return slope, curvature


_ROBUST = {"right": (1 - SMOOTHING) / (1 - 2 * SMOOTHING), "wrong": -SMOOTHING / (1 - 2 * SMOOTHING)}

_FLIPPED: Mapping[str, Any] = {"flipped": SMOOTHING, "exact": True, "num_draws": 40}  # Any: of many kinds
_DPO: Mapping[str, Any] = {"algorithm": "dpo", "beta": 1.0}  # Any: settings are of many kinds
_IPO: Mapping[str, Any] = {"algorithm": "ipo", "beta": 0.25}  # Any: ditto
_KTO: Mapping[str, Any] = {"algorithm": "kto", "beta": 1.0}  # Any: ditto
_IPO_OPTIMUM = chances().mean(axis=1) / 0.25
"""p*(y ≻ μ)/τ, rivals being drawn evenly."""

_WORST, _BEST = 0, 2
_MAJORITY = np.array([-np.inf, np.nan, 0.0])
"""KTO's optimum of one prompt with two completions, of which most labels, a share p, speak for the better one.

The theorem on contradictory preferences (arXiv 2402.01306, section 4) with λ_D = λ_U: with s(r) = σ(β·(r − z)) the mean
loss of the better completion's rows is p − (2p − 1)·s(r), and of the other's 1 − p + (2p − 1)·s(r'). It falls with
log π(better) and rises with log π(other), whatever z is, and a policy that is certain of the better one has both at
their ends. So it is the minimum for every z that no gradient goes through: for the KL divergence of the paper as for
the estimate from each batch that the learner takes. The third completion takes no part.
"""

METHODS: Mapping[str, Method] = {
    "dpo, exact chances": Method(learner=_DPO, loss=dpo(1.0), exact=True, population=REWARDS),
    "dpo": Method(learner=_DPO, loss=dpo(1.0), population=REWARDS),
    "dpo, nll_weight 0.2": Method(learner={**_DPO, "nll_weight": 0.2}, loss=_with_nll(dpo(1.0), 0.2)),
    "dpo, an eighth flipped": Method(learner=_DPO, loss=dpo(1.0), **_FLIPPED, population=REWARDS),
    "cdpo, an eighth flipped": Method(
        learner={"algorithm": "cdpo", "beta": 1.0, "label_smoothing": SMOOTHING},
        loss=dpo(1.0, right=1 - SMOOTHING, wrong=SMOOTHING),
        **_FLIPPED,
    ),
    "robust_dpo, an eighth flipped": Method(
        learner={"algorithm": "robust_dpo", "beta": 1.0, "label_smoothing": SMOOTHING},
        loss=dpo(1.0, **_ROBUST),
        **_FLIPPED,
        population=REWARDS,
    ),
    "ipo, exact chances": Method(learner=_IPO, loss=ipo(0.25), exact=True, population=_IPO_OPTIMUM),
    "ipo": Method(learner=_IPO, loss=ipo(0.25), population=_IPO_OPTIMUM),
    "simpo": Method(learner={"algorithm": "simpo", "beta": 2.0, "target_margin": 0.5}, loss=simpo(2.0, 0.5)),
    "orpo": Method(learner={"algorithm": "orpo", "odds_ratio_weight": 1.0}, loss=orpo(1.0)),
    "kto": Method(learner=_KTO),
    "kto, two completions 4 : 1": Method(learner=_KTO, exact=True, population=_MAJORITY, rivals=(_WORST, _BEST)),
}
