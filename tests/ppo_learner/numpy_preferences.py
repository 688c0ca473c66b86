"""The preference losses once more, pair by pair in plain NumPy, to compare the learner's with.

It must not import ppo_learner: the two share nothing but the papers. Every function takes the logprobs of one row's
tokens under the policy, and the sums under the reference.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def dpo(chosen: Floats, rejected: Floats, reference: tuple[float, float], beta: float) -> float:
    ratios = np.exp(chosen.sum() - reference[0]), np.exp(rejected.sum() - reference[1])
    return float(-np.log(ratios[0] ** beta / (ratios[0] ** beta + ratios[1] ** beta)))


def cdpo(chosen: Floats, rejected: Floats, reference: tuple[float, float], beta: float, wrong: float) -> float:
    flipped = dpo(rejected, chosen, (reference[1], reference[0]), beta)
    return (1 - wrong) * dpo(chosen, rejected, reference, beta) + wrong * flipped


def robust_dpo(chosen: Floats, rejected: Floats, reference: tuple[float, float], beta: float, wrong: float) -> float:
    flipped = dpo(rejected, chosen, (reference[1], reference[0]), beta)
    return ((1 - wrong) * dpo(chosen, rejected, reference, beta) - wrong * flipped) / (1 - 2 * wrong)


def ipo(chosen: Floats, rejected: Floats, reference: tuple[float, float], tau: float) -> float:
    ratio = (np.exp(chosen.sum()) * np.exp(reference[1])) / (np.exp(rejected.sum()) * np.exp(reference[0]))
    return float((np.log(ratio) - 0.5 / tau) ** 2)


def simpo(chosen: Floats, rejected: Floats, beta: float, margin: float) -> float:
    return float(-np.log(sigmoid(beta * (chosen.mean() - rejected.mean()) - margin)))


def odds(logprobs: Floats) -> float:
    probability = np.prod(np.exp(logprobs)) ** (1 / len(logprobs))
    return float(probability / (1 - probability))


def orpo(chosen: Floats, rejected: Floats, weight: float) -> float:
    return float(-chosen.mean() - weight * np.log(sigmoid(np.log(odds(chosen) / odds(rejected)))))


def kto(
    completion: Floats, reference: float, desirable: bool, point: float, beta: float, weights: tuple[float, float]
) -> float:
    ratio = completion.sum() - reference
    if desirable:
        return weights[0] - weights[0] * sigmoid(beta * (ratio - point))
    return weights[1] - weights[1] * sigmoid(beta * (point - ratio))


def kto_point(log_ratios: Floats) -> float:
    return max(0.0, float(sum(log_ratios)) / len(log_ratios))
