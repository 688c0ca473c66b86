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


def gae_of_turns(
    rewards: Floats, values: Floats, ends: list[bool], token: tuple[float, float], turn: tuple[float, float]
) -> Floats:
    """A_t = Σ_k (∏ γλ from t to k)·δ_k, with (γ, λ) of the turn's end where one lies between two tokens."""
    pairs = [turn if end else token for end in ends]
    num_tokens = len(rewards)
    following = np.append(values[1:], 0.0)
    deltas = [rewards[t] + pairs[t][0] * following[t] - values[t] for t in range(num_tokens)]
    return np.array(
        [
            sum(np.prod([gamma * lam for gamma, lam in pairs[t:k]]) * deltas[k] for k in range(t, num_tokens))
            for t in range(num_tokens)
        ]
    )


def returns_to_go(rewards: Floats, gamma: float) -> Floats:
    num_tokens = len(rewards)
    return np.array([sum(gamma ** (k - t) * rewards[k] for k in range(t, num_tokens)) for t in range(num_tokens)])


def difficulty_weight(advantage: float, solved: list[bool]) -> float:
    share = sum(solved) / len(solved)
    x = share if advantage > 0 else 1 - share
    return 0.4 + (1.5 - 0.4) / (1 + np.exp(10.0 * (x - 0.75)))


def concise(scores: Floats, solved: list[bool], lengths: list[int], alpha: float) -> Floats:
    of_solutions = [length for length, is_solution in zip(lengths, solved, strict=True) if is_solution]
    mean = np.mean(of_solutions or [0.0])
    deviation = np.std(of_solutions, ddof=1) if len(of_solutions) > 1 else 0.0
    return np.array(
        [
            score * np.exp(-alpha * (length - mean) / (deviation or 1.0)) if is_solution else score
            for score, length, is_solution in zip(scores, lengths, solved, strict=True)
        ]
    )


def group_normalised(scores: Floats) -> Floats:
    return (scores - scores.mean()) / (scores.std(ddof=1) + 1e-6)


def step_normalised(steps: list[list[tuple[int, float]]], lengths: list[int]) -> list[Floats]:
    """Of one group: for each completion (ending token, reward) of its steps; A_t sums what ends at t or later."""
    pooled = np.array([reward for completion in steps for _, reward in completion])
    deviation = pooled.std(ddof=1) if len(pooled) > 1 else 0.0
    return [
        np.array(
            [
                sum((reward - pooled.mean()) / (deviation + 1e-6) for end, reward in completion if end >= t)
                for t in range(length)
            ],
            dtype=np.float64,
        )
        for completion, length in zip(steps, lengths, strict=True)
    ]


def leave_one_out(scores: Floats) -> Floats:
    return np.array([score - np.delete(scores, i).mean() for i, score in enumerate(scores)])


def whitened(values: Floats) -> Floats:
    return (values - values.mean()) / (values.std() + 1e-6)


def running_moments(returns: Floats) -> tuple[float, float]:
    """Mean and deviation by the recurrences of PopArt (arXiv 1602.07714) with β_t = 1/t, which counts all alike."""
    mean = squares = 0.0
    for t, value in enumerate(returns, start=1):
        mean += (value - mean) / t
        squares += (value**2 - squares) / t
    return mean, float(np.sqrt(squares - mean**2))


def rescaled_layer(
    weight: Floats, bias: float, before: tuple[float, float], after: tuple[float, float]
) -> tuple[Floats, float]:
    """PopArt's correction of the last layer, proposition 1 there; (mean, deviation) before and after."""
    (mean, deviation), (new_mean, new_deviation) = before, after
    return weight * deviation / new_deviation, (deviation * bias + mean - new_mean) / new_deviation


def ppo_clip(new: Floats, old: Floats, advantages: Floats, low: float, high: float) -> Floats:
    losses = []
    for n, o, a in zip(new, old, advantages, strict=True):
        ratio = np.exp(n - o)
        bounded = min(max(ratio, 1 - low), 1 + high)
        losses.append(max(-ratio * a, -bounded * a))
    return np.array(losses)


def importance_weights(correction: str, ratios: list[Floats], cap: float, low: float, high: float) -> list[Floats]:
    """One array per sequence: what each token's loss is multiplied with."""
    weights = []
    for sequence in ratios:
        whole = float(np.prod(sequence))
        per_token = {
            "none": lambda ratio: 1.0,
            "token_tis": lambda ratio: min(ratio, cap),
            "sequence_tis": lambda ratio: min(whole, cap),  # noqa: B023 - called within this turn of the loop
            "sequence_mis": lambda ratio: whole if whole <= cap else 0.0,  # noqa: B023 - as above
            "icepop": lambda ratio: ratio if low <= ratio <= high else 0.0,
        }[correction]
        weights.append(np.array([per_token(ratio) for ratio in sequence]))
    return weights


def interpolated(behaviour: Floats, current: Floats, token_versions: list[int], version: int) -> Floats:
    """A-3PO as AReaL writes it: α = (v_prox − v_behaviour)/(v_θ − v_behaviour), v_θ the version that the step makes."""
    logprobs = []
    for b, c, v in zip(behaviour, current, token_versions, strict=True):
        alpha = (version - v) / (version + 1 - v)
        logprobs.append(b + alpha * (c - b))
    return np.array(logprobs)


def effective_sample_share(weights: Floats) -> float:
    return float(sum(weights) ** 2 / (len(weights) * sum(w * w for w in weights)))


def clipped_value_loss(
    values: Floats, old: Floats, returns: Floats, clip: float, huber_delta: float = np.inf
) -> Floats:
    def error(e: float) -> float:
        return 0.5 * e**2 if abs(e) <= huber_delta else huber_delta * (abs(e) - 0.5 * huber_delta)

    losses = []
    for v, o, r in zip(values, old, returns, strict=True):
        bounded = min(max(v, o - clip), o + clip)
        losses.append(max(error(v - r), error(bounded - r)))
    return np.array(losses)


def log_softmax(logits: Floats) -> Floats:
    """(T, V) → (T, V)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def kl(p: Floats, q: Floats) -> float:
    """Σ p · log(p/q) of two rows of probabilities."""
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))


def bradley_terry(scores: Floats, targets: Floats) -> float:
    better, worse = (np.exp(score) for score in (scores[0] - targets[0], scores[1] - targets[1]))
    return float(-np.log(better / (better + worse)))


def plackett_luce(scores: Floats, targets: Floats) -> float:
    weights = np.exp(scores)
    return float(-sum(np.log(weights[place] / weights[place:].sum()) for place in range(len(weights))))


def cross_entropy(scores: Floats, targets: Floats) -> float:
    chances = 1 / (1 + np.exp(-scores))
    return float(-sum(y * np.log(p) + (1 - y) * np.log(1 - p) for p, y in zip(chances, targets, strict=True)))


def squared_error(scores: Floats, targets: Floats) -> float:
    return float(sum((score - target) ** 2 for score, target in zip(scores, targets, strict=True)))


def muon_steps(gradients: list[Floats], *, momentum: float, size: float) -> list[Floats]:
    """Steps of Muon for one weight (m, n), to be multiplied by −lr: Jordan et al. 2024, sized as in arXiv 2502.16982.

    Nesterov momentum, five Newton–Schulz iterations X ← aX + (bXXᵀ + c(XXᵀ)²)X from X = M / ‖M‖, times size·√max(m, n).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    average = np.zeros_like(gradients[0])
    steps = []
    for gradient in gradients:
        average = momentum * average + (1 - momentum) * gradient
        x = momentum * average + (1 - momentum) * gradient
        x = x / np.linalg.norm(x)
        wide = x if x.shape[0] <= x.shape[1] else x.T
        for _ in range(5):
            gram = wide @ wide.T
            wide = a * wide + (b * gram + c * gram @ gram) @ wide
        x = wide if x.shape[0] <= x.shape[1] else wide.T
        steps.append(size * max(x.shape) ** 0.5 * x)
    return steps
