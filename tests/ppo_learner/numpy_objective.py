"""What the learner descends once more, token by token in plain NumPy loops: KL, sums over tokens, experts' balance.

It must not import ppo_learner: the two share nothing but the papers.
"""

import numpy as np

from tests.ppo_learner.numpy_reference import Floats


def kl_estimates(estimator: str, new: Floats, reference: Floats) -> Floats:
    """Schulman 2020, with r = π_ref/π of tokens that π sampled: −log r, ½·(log r)², r − 1 − log r."""
    estimates = []
    for r in np.exp(reference) / np.exp(new):
        estimates.append({"k1": -np.log(r), "k2": np.log(r) ** 2 / 2, "k3": r - 1 - np.log(r)}[estimator])
    return np.array(estimates)


def policy_objective(
    weights: Floats, losses: Floats, kl: Floats, entropy: Floats, *, kl_coefficient: float, entropy_coefficient: float
) -> float:
    """`losses` with the importance weights in them already."""
    total = 0.0
    for w, loss, distance, spread in zip(weights, losses, kl, entropy, strict=True):
        total += w * (loss + kl_coefficient * distance - entropy_coefficient * spread)
    return total


def aggregated(aggregation: str, losses: list[Floats], length: int) -> float:
    """The one loss of a step, of the losses of each sequence's tokens; `length` is the constant of constant_length."""
    if aggregation == "token_mean":
        return float(np.mean([loss for sequence in losses for loss in sequence]))
    if aggregation == "sequence_mean":
        return float(np.mean([np.mean(sequence) for sequence in losses if len(sequence)]))
    return {"constant_length": float(np.mean([sum(sequence) / length for sequence in losses]))}[aggregation]


def balance_loss(layers: list[Floats], real: list[bool], num_per_token: int) -> float:
    """Equations 4 to 6 of arXiv 2101.03961 without α, of each layer's logits (T, E), averaged over layers."""
    losses = []
    for logits in layers:
        tokens = [row for row, is_real in zip(logits, real, strict=True) if is_real]
        num_experts = len(tokens[0])
        dispatched, probability = np.zeros(num_experts), np.zeros(num_experts)
        for row in tokens:
            probability += np.exp(row) / sum(np.exp(row)) / len(tokens)
            for expert in sorted(range(num_experts), key=lambda e: -row[e])[:num_per_token]:
                dispatched[expert] += 1 / len(tokens)
        losses.append(num_experts * sum(dispatched * probability))
    return float(np.mean(losses))
