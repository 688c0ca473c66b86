"""How good a reward model's scores are on rows that it did not learn: accuracy beside baselines, length, calibration.

It must not know how scores are made. Invariants: every row counts the same, however many completions it compares; a
tie counts half; intervals take rows, not pairs, as independent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from services.contracts.records import Json
from services.contracts.reward_example import RewardExample
from services.control.wilson import wilson_interval

NUM_BINS = 10
"""Standard deviations that hold 95% of a normal distribution."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two completions of a row, the better one first.

    Attributes:
        lead: score of the better one over the other's.
        longer: characters that the better one has more.
        weight: 1 over the number of the row's pairs.
    """

    lead: float
    longer: int
    weight: float


def compare(examples: Sequence[RewardExample], scores: Sequence[float]) -> list[Comparison]:
    """Every pair of every row. `scores` has one entry per completion, row after row."""
    comparisons, begin = [], 0
    for example in examples:
        own = scores[begin : begin + len(example.targets)]
        begin += len(own)
        pairs = list(combinations(zip(own, example.completion_lengths, strict=True), 2))
        comparisons += [
            Comparison(lead=better - worse, longer=length - other, weight=1 / len(pairs))
            for (better, length), (worse, other) in pairs
        ]
    return comparisons


def longer_is_better(examples: Sequence[RewardExample]) -> bool:
    """Whether the longer completion of a pair is more often the better one."""
    return _accuracy(compare(examples, [length for example in examples for length in example.completion_lengths])) > 0.5


def judge_comparisons(comparisons: Sequence[Comparison], *, prefer_longer: bool) -> dict[str, Json]:
    """Accuracy with its 95% interval, the baselines, and what is left once length is taken out.

    Args:
        prefer_longer: what the training rows say of length, for the baseline that goes by it.
    """
    num_rows = sum(comparison.weight for comparison in comparisons)
    accuracy = _accuracy(comparisons)
    low, high = wilson_interval(accuracy, num_rows)
    longer = _weighted([(_right(comparison.longer), comparison.weight) for comparison in comparisons])
    probabilities = [(_logistic(comparison.lead), 1.0, comparison.weight) for comparison in comparisons]
    sided = [(max(p, 1 - p), float(p > 0.5) if p != 0.5 else 0.5, weight) for p, _, weight in probabilities]
    return {
        "num_rows": round(num_rows),
        "num_pairs": len(comparisons),
        "accuracy": accuracy,
        "interval_95": [low, high],
        # A constant answer: which of the two stands first is arbitrary.
        "baselines": {"majority": 0.5, "longer_answer": longer, "length_rule": longer if prefer_longer else 1 - longer},
        "length": _length_debiased(comparisons),
        "calibration": calibration(sided),
    }


def judge_labels(
    labels: Sequence[float], scores: Sequence[float], num_rows: int, training_labels: Sequence[float]
) -> dict[str, Json]:
    """Accuracy of σ(score) > ½ against label > ½, beside the more frequent label of the training rows; calibration."""
    accuracy = fmean(float((score > 0) == (label > 0.5)) for score, label in zip(scores, labels, strict=True))
    majority = fmean(float(label > 0.5) for label in training_labels) > 0.5
    low, high = wilson_interval(accuracy, num_rows)
    return {
        "num_rows": num_rows,
        "num_labels": len(labels),
        "accuracy": accuracy,
        "interval_95": [low, high],
        "baselines": {"majority": fmean(float((label > 0.5) == majority) for label in labels)},
        "calibration": calibration(
            [(_logistic(score), label, 1.0) for score, label in zip(scores, labels, strict=True)]
        ),
    }


def judge_ratings(
    ratings: Sequence[float], scores: Sequence[float], num_rows: int, training_ratings: Sequence[float]
) -> dict[str, Json]:
    """Mean squared error, beside that of always saying the training rows' mean."""
    mean = fmean(training_ratings)
    return {
        "num_rows": num_rows,
        "num_labels": len(ratings),
        "mean_squared_error": fmean((score - rating) ** 2 for score, rating in zip(scores, ratings, strict=True)),
        "baselines": {"training_mean": fmean((mean - rating) ** 2 for rating in ratings)},
        "correlation": _correlation(scores, ratings),
    }


def calibration(outcomes: Sequence[tuple[float, float, float]]) -> dict[str, Json]:
    """The reliability table, and the expected calibration error Σ_b n_b/n · |mean outcome − mean probability|.

    Naeini et al. 2015. For pairs the probability is that of the side which the model prefers, from ½ up.

    Args:
        outcomes: predicted probability, what happened (0 to 1), and weight, of each.
    """
    total = sum(weight for _, _, weight in outcomes)
    error, table = 0.0, list[Json]()
    for number in range(NUM_BINS):
        inside = [one for one in outcomes if min(int(one[0] * NUM_BINS), NUM_BINS - 1) == number]
        if inside:
            predicted = _weighted([(probability, weight) for probability, _, weight in inside])
            happened = _weighted([(outcome, weight) for _, outcome, weight in inside])
            error += sum(weight for *_, weight in inside) / total * abs(happened - predicted)
            table.append(
                {
                    "from": number / NUM_BINS,
                    "to": (number + 1) / NUM_BINS,
                    "count": len(inside),
                    "predicted": predicted,
                    "happened": happened,
                }
            )
    return {"expected_error": error, "table": table}


def _length_debiased(comparisons: Sequence[Comparison]) -> dict[str, Json]:
    """Accuracy where the better one is longer and where it is shorter, their mean, and without length's linear part.

    Going by length alone gives ½ as the mean of the two. The linear part is the least-squares slope of the lead on the
    difference in length.
    """
    strata = {
        "better_is_longer": [comparison for comparison in comparisons if comparison.longer > 0],
        "better_is_shorter": [comparison for comparison in comparisons if comparison.longer < 0],
    }
    found: dict[str, Json] = {name: _accuracy(members) for name, members in strata.items() if members}
    if len(found) == 2:
        found["balanced_accuracy"] = fmean(_accuracy(members) for members in strata.values())
    squares = sum(comparison.weight * comparison.longer**2 for comparison in comparisons)
    products = sum(comparison.weight * comparison.longer * comparison.lead for comparison in comparisons)
    slope = products / squares if squares else 0.0
    residuals = [(_right(comparison.lead - slope * comparison.longer), comparison.weight) for comparison in comparisons]
    leads = sum(comparison.weight * comparison.lead**2 for comparison in comparisons)
    return found | {
        "residual_accuracy": _weighted(residuals),
        "lead_correlation": products / math.sqrt(squares * leads) if squares and leads else 0.0,
    }


def _accuracy(comparisons: Sequence[Comparison]) -> float:
    return _weighted([(_right(comparison.lead), comparison.weight) for comparison in comparisons])


def _right(lead: float) -> float:
    return 0.5 if lead == 0 else float(lead > 0)


def _weighted(values: Sequence[tuple[float, float]]) -> float:
    return sum(value * weight for value, weight in values) / sum(weight for _, weight in values)


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def _correlation(some: Sequence[float], others: Sequence[float]) -> float:
    """Pearson's; 0 where one of them does not vary."""
    mean, other_mean = fmean(some), fmean(others)
    product = sum((a - mean) * (b - other_mean) for a, b in zip(some, others, strict=True))
    scale = sum((a - mean) ** 2 for a in some) * sum((b - other_mean) ** 2 for b in others)
    return product / math.sqrt(scale) if scale else 0.0
