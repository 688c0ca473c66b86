"""What a token counts: numbers worked by hand, NumPy, and what the weights of a step sum to."""

import pytest
import torch
from torch import Tensor

from ppo_learner.aggregation import AGGREGATIONS
from ppo_learner.config import LearnerConfig
from tests.ppo_learner import numpy_objective

LENGTH = 8


def weights(counts: list[int], aggregation: str) -> Tensor:
    length = LENGTH if aggregation == "constant_length" else None
    config = LearnerConfig.model_validate({"loss_aggregation": aggregation, "loss_length": length})
    return AGGREGATIONS[aggregation](torch.tensor(counts), config)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_the_weights_of_a_mean_sum_to_one(aggregation: str) -> None:
    counts = [3, 0, 1, 12]
    assert float((weights(counts, aggregation) * torch.tensor(counts)).sum()) == pytest.approx(1.0, abs=1e-12)


def test_weights_weigh_tokens_or_completions_alike_or_by_a_constant() -> None:
    counts = [3, 0, 1]
    assert weights(counts, "token_mean").tolist() == [0.25, 0.25, 0.25]
    torch.testing.assert_close(
        weights(counts, "sequence_mean")[[0, 2]], torch.tensor([1 / 6, 1 / 2], dtype=torch.float64)
    )
    assert weights(counts, "constant_length").tolist() == [1 / (3 * LENGTH)] * 3


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_loss_of_a_step_agrees_with_numpy(aggregation: str) -> None:
    torch.manual_seed(0)
    counts = [3, 0, 1, 12]
    losses = [torch.randn(count, dtype=torch.float64) for count in counts]
    found = sum(float((weight * part).sum()) for weight, part in zip(weights(counts, aggregation), losses, strict=True))
    expected = numpy_objective.aggregated(aggregation, [part.numpy() for part in losses], LENGTH)
    assert found == pytest.approx(expected, rel=1e-12)


def test_with_a_constant_length_a_token_counts_the_same_whatever_stands_beside_it() -> None:
    short, long = weights([1, 1], "constant_length"), weights([1, 100], "constant_length")
    assert short.tolist() == long.tolist()
    assert weights([1, 1], "token_mean")[0] > weights([1, 100], "token_mean")[0]
