"""How reward models are judged, against numbers worked by hand."""

import math
import random
from array import array
from collections.abc import Sequence
from typing import Any

import pytest

from services.contracts.reward_example import RewardExample
from services.control.reward_evaluation import (
    calibration,
    compare,
    judge_comparisons,
    judge_labels,
    judge_ratings,
    longer_is_better,
)
from services.control.wilson import wilson_interval


def ranked(*lengths: int, row: int = 0) -> RewardExample:
    """A row whose completions have these lengths, best first."""
    return RewardExample(
        row=row,
        sequences=tuple(array("i", [1]) for _ in lengths),
        positions=array("i"),
        targets=(0.0,) * len(lengths),
        completion_lengths=lengths,
    )


def judge(rows: Sequence[RewardExample], scores: Sequence[float], *, prefer_longer: bool = True) -> Any:  # Any: JSON
    return judge_comparisons(compare(rows, scores), prefer_longer=prefer_longer)


def test_accuracy_counts_rows_alike_and_ties_half() -> None:
    # The pair is right; of the list's three pairs one is right, one wrong, one a tie.
    found = judge([ranked(5, 5), ranked(1, 1, 1)], [2.0, 1.0, 0.0, -1.0, 0.0])
    assert found["accuracy"] == pytest.approx((1 + (1 + 0 + 0.5) / 3) / 2)
    assert (found["num_rows"], found["num_pairs"]) == (2, 4)


def test_baselines_go_by_length_as_the_training_rows_say() -> None:
    rows = [ranked(9, 1), ranked(1, 9), ranked(1, 9), ranked(4, 4)]
    assert not longer_is_better(rows)
    assert longer_is_better(rows[:1])
    baselines = judge(rows, [0.0] * 8, prefer_longer=False)["baselines"]
    assert baselines == {"majority": 0.5, "longer_answer": 1.5 / 4, "length_rule": 2.5 / 4}


def test_a_score_that_is_length_looks_good_until_length_is_taken_out() -> None:
    draw = random.Random(0)
    rows = [ranked(*((30, draw.randint(1, 20)) if draw.random() < 0.8 else (1, 20 + n))) for n in range(400)]
    found = judge(rows, [float(length) for row in rows for length in row.completion_lengths])
    assert found["accuracy"] == pytest.approx(found["baselines"]["longer_answer"])
    assert found["accuracy"] > 0.75
    assert found["length"]["balanced_accuracy"] == 0.5
    assert found["length"]["residual_accuracy"] == pytest.approx(0.5)
    assert found["length"]["lead_correlation"] == pytest.approx(1.0)


def test_a_score_that_has_nothing_to_do_with_length_keeps_its_accuracy() -> None:
    rows = [ranked(30, 10), ranked(10, 30), ranked(20, 20), ranked(30, 10)]
    length = judge(rows, [1.0, 0.0] * 4)["length"]
    assert length == {
        "better_is_longer": 1.0,
        "better_is_shorter": 1.0,
        "balanced_accuracy": 1.0,
        "residual_accuracy": 1.0,
        "lead_correlation": pytest.approx(1 / math.sqrt(12)),
    }


def test_the_wilson_interval_worked_by_hand() -> None:
    # Newcombe 1998, table I: 81 of 263.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(1.0, 10)[1] == pytest.approx(1.0)


def test_calibration_is_the_gap_between_what_was_said_and_what_happened() -> None:
    # Three times 0.95 of which two happened, once 0.65 which did.
    found = calibration([(0.95, 1, 1), (0.95, 1, 1), (0.95, 0, 1), (0.65, 1, 1)])
    assert found["expected_error"] == pytest.approx(0.75 * (0.95 - 2 / 3) + 0.25 * 0.35)
    assert found["table"] == [
        {"from": 0.6, "to": 0.7, "count": 1, "predicted": 0.65, "happened": 1.0},
        {"from": 0.9, "to": 1.0, "count": 3, "predicted": pytest.approx(0.95), "happened": pytest.approx(2 / 3)},
    ]


def test_pairs_are_calibrated_by_the_side_that_is_preferred() -> None:
    lead = math.log(3)  # σ is 3/4
    rows = [ranked(1, 1)] * 4
    right = judge(rows, [lead, 0.0] * 3 + [0.0, lead])
    assert right["calibration"]["expected_error"] == pytest.approx(0.0)
    wrong = judge(rows, [0.0, lead] * 3 + [lead, 0.0])
    assert wrong["calibration"]["expected_error"] == pytest.approx(0.5)


def test_labels_are_judged_beside_the_more_frequent_one() -> None:
    found: Any = judge_labels([1.0, 0.0, 0.75, 0.0], [2.0, -1.0, -1.0, 3.0], 3, [1.0, 0.9, 0.0])
    assert found["accuracy"] == 0.5
    assert found["baselines"] == {"majority": 0.5}
    assert (found["num_rows"], found["num_labels"]) == (3, 4)
    assert found["interval_95"] == list(wilson_interval(0.5, 3))


def test_ratings_are_judged_beside_their_mean() -> None:
    found: Any = judge_ratings([1.0, 3.0], [1.0, 2.0], 2, [0.0, 4.0])
    assert found["mean_squared_error"] == 0.5
    assert found["baselines"] == {"training_mean": 1.0}
    assert found["correlation"] == pytest.approx(1.0)
