"""Importance weights against hand-worked numbers and NumPy loops, and what every correction must keep."""

import numpy as np
import pytest
import torch

from ppo_learner.config import LearnerConfig
from ppo_learner.importance import IMPORTANCE_CORRECTIONS, effective_sample_size
from tests.ppo_learner import numpy_reference

CONFIGS = {
    "none": LearnerConfig(),
    "token_tis": LearnerConfig(importance_correction="token_tis", importance_cap=2.0),
    "sequence_tis": LearnerConfig(importance_correction="sequence_tis", importance_cap=2.0),
    "sequence_mis": LearnerConfig(importance_correction="sequence_mis", importance_cap=2.0),
    "icepop": LearnerConfig(importance_correction="icepop", importance_low=0.5, importance_high=2.5),
}
LENGTHS = [5, 1, 30, 2, 12]


def rows(lengths: list[int]) -> torch.Tensor:
    return torch.repeat_interleave(torch.tensor(lengths, dtype=torch.int64))


@pytest.mark.parametrize(
    ("name", "weights", "clipped"),
    [
        ("none", [1.0, 1.0, 1.0, 1.0], [False, False, False, False]),
        ("token_tis", [1.5, 0.6, 2.0, 0.25], [False, False, True, False]),
        ("sequence_tis", [2.0, 2.0, 2.0, 0.25], [True, True, True, False]),
        ("sequence_mis", [0.0, 0.0, 0.0, 0.25], [True, True, True, False]),
        ("icepop", [1.5, 0.6, 0.0, 0.0], [False, False, True, True]),
    ],
)
def test_weights_worked_by_hand(name: str, weights: list[float], clipped: list[bool]) -> None:
    # Ratios 1.5, 0.6, 3 of one sequence, whose product is 2.7, and 0.25 of another.
    log_ratio = torch.tensor([1.5, 0.6, 3.0, 0.25], dtype=torch.float64).log()
    found = IMPORTANCE_CORRECTIONS[name](log_ratio, rows([3, 1]), CONFIGS[name])
    torch.testing.assert_close(found.weights, torch.tensor(weights, dtype=torch.float64))
    assert found.clipped.tolist() == clipped


@pytest.mark.parametrize("name", IMPORTANCE_CORRECTIONS)
def test_every_correction_agrees_with_numpy_on_random_numbers(name: str) -> None:
    torch.manual_seed(0)
    log_ratio = 0.6 * torch.randn(sum(LENGTHS), dtype=torch.float64)
    ratios = np.split(log_ratio.exp().numpy(), np.cumsum(LENGTHS)[:-1])
    expected = numpy_reference.importance_weights(name, ratios, cap=2.0, low=0.5, high=2.5)
    found = IMPORTANCE_CORRECTIONS[name](log_ratio, rows(LENGTHS), CONFIGS[name])
    np.testing.assert_allclose(found.weights.numpy(), np.concatenate(expected), rtol=1e-12)
    assert name == "none" or 0 < int(found.clipped.sum()) < len(log_ratio)


@pytest.mark.parametrize("name", IMPORTANCE_CORRECTIONS)
def test_every_correction_is_exactly_one_between_equals(name: str) -> None:
    found = IMPORTANCE_CORRECTIONS[name](torch.zeros(sum(LENGTHS)), rows(LENGTHS), CONFIGS[name])
    assert found.weights.tolist() == [1.0] * sum(LENGTHS)
    assert not found.clipped.any()


@pytest.mark.parametrize("name", IMPORTANCE_CORRECTIONS)
def test_every_correction_sees_whole_sequences_and_nothing_else(name: str) -> None:
    torch.manual_seed(1)
    parts = [0.6 * torch.randn(length) for length in LENGTHS]
    together = IMPORTANCE_CORRECTIONS[name](torch.cat(parts), rows(LENGTHS), CONFIGS[name])
    alone = [
        IMPORTANCE_CORRECTIONS[name](part, torch.full((len(part),), 3, dtype=torch.int64), CONFIGS[name])
        for part in parts
    ]
    assert torch.equal(together.weights, torch.cat([each.weights for each in alone]))
    assert torch.equal(together.clipped, torch.cat([each.clipped for each in alone]))


@pytest.mark.parametrize("name", IMPORTANCE_CORRECTIONS)
def test_every_correction_is_finite_carries_no_gradient_and_takes_no_tokens(name: str) -> None:
    extreme = torch.tensor([500.0, -500.0, 0.0], requires_grad=True)
    found = IMPORTANCE_CORRECTIONS[name](extreme, rows([1, 1, 1]), CONFIGS[name])
    assert torch.isfinite(found.weights).all() and (found.weights >= 0).all()
    assert not found.weights.requires_grad
    assert len(IMPORTANCE_CORRECTIONS[name](torch.empty(0), rows([]), CONFIGS[name]).weights) == 0


def test_the_effective_sample_size_worked_by_hand() -> None:
    # (3 + 1)² / (2·(9 + 1)) = 0.8
    assert effective_sample_size(torch.tensor([3.0, 1.0])) == pytest.approx(0.8)
    assert effective_sample_size(torch.full((7,), 0.3)) == pytest.approx(1.0)
    assert effective_sample_size(torch.tensor([5.0, 0.0, 0.0, 0.0])) == pytest.approx(0.25)
    assert effective_sample_size(torch.zeros(3)) == 0.0


def test_the_effective_sample_size_agrees_with_numpy() -> None:
    torch.manual_seed(2)
    weights = torch.rand(50, dtype=torch.float64)
    assert effective_sample_size(weights) == pytest.approx(numpy_reference.effective_sample_share(weights.numpy()))
