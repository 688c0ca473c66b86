"""The learner's formulas once more, token by token in plain NumPy loops, to compare the vectorised code with.

It must not import ppo_learner: the two share nothing but the papers.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def gae(rewards: Floats, values: Floats, gamma: float, gae_lambda: float) -> Floats:
    """A_t = Σ_k (γλ)^k δ_{t+k}, each sum written out."""
    num_tokens = len(rewards)
    following = np.append(values[1:], 0.0)
    deltas = [rewards[t] + gamma * following[t] - values[t] for t in range(num_tokens)]
    return np.array(
        [sum((gamma * gae_lambda) ** (k - t) * deltas[k] for k in range(t, num_tokens)) for t in range(num_tokens)]
    )


def group_normalised(scores: Floats) -> Floats:
    return (scores - scores.mean()) / (scores.std(ddof=1) + 1e-6)


def leave_one_out(scores: Floats) -> Floats:
    return np.array([score - np.delete(scores, i).mean() for i, score in enumerate(scores)])


def whitened(values: Floats) -> Floats:
    return (values - values.mean()) / (values.std() + 1e-6)


def ppo_clip(new: Floats, old: Floats, advantages: Floats, low: float, high: float) -> Floats:
    losses = []
    for n, o, a in zip(new, old, advantages, strict=True):
        ratio = np.exp(n - o)
        bounded = min(max(ratio, 1 - low), 1 + high)
        losses.append(max(-ratio * a, -bounded * a))
    return np.array(losses)


def clipped_value_loss(values: Floats, old: Floats, returns: Floats, clip: float) -> Floats:
    losses = []
    for v, o, r in zip(values, old, returns, strict=True):
        bounded = min(max(v, o - clip), o + clip)
        losses.append(0.5 * max((v - r) ** 2, (bounded - r) ** 2))
    return np.array(losses)


def log_softmax(logits: Floats) -> Floats:
    """(T, V) → (T, V)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
