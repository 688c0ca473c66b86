"""Policy losses once more, sequence by sequence in plain NumPy loops, each from its paper's objective.

It must not import ppo_learner: the two share nothing but the papers. Every function takes one sequence and returns the
loss of each of its tokens.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def ppo(new: Floats, old: Floats, advantages: Floats, low: float, high: float, dual: float | None = None) -> Floats:
    losses = []
    for n, o, a in zip(new, old, advantages, strict=True):
        ratio = np.exp(n - o)
        objective = min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a)
        if dual is not None and a < 0:
            objective = max(objective, dual * a)
        losses.append(-objective)
    return np.array(losses)


def gspo(new: Floats, old: Floats, advantages: Floats, low: float, high: float) -> Floats:
    """Equation 5 of arXiv 2507.18071, with the likelihood of the whole sequence to the power 1/|y|."""
    ratio = (np.prod(np.exp(new)) / np.prod(np.exp(old))) ** (1 / len(new))
    bounded = min(max(ratio, 1 - low), 1 + high)
    return np.array([-min(ratio * a, bounded * a) for a in advantages])


def cispo(new: Floats, old: Floats, advantages: Floats, low: float, high: float) -> Floats:
    weights = [min(max(np.exp(n - o), 1 - low), 1 + high) for n, o in zip(new, old, strict=True)]
    return np.array([-w * a * n for w, a, n in zip(weights, advantages, new, strict=True)])


def sapo(new: Floats, old: Floats, advantages: Floats, positive: float, negative: float) -> Floats:
    losses = []
    for n, o, a in zip(new, old, advantages, strict=True):
        temperature = positive if a > 0 else negative
        gate = 4 / temperature / (1 + np.exp(-temperature * (np.exp(n - o) - 1)))
        losses.append(-gate * a)
    return np.array(losses)


def reinforce(new: Floats, old: Floats, advantages: Floats) -> Floats:
    return -advantages * new
