"""The critic's loss against hand-worked numbers, NumPy loops and finite differences."""

import numpy as np
import pytest
import torch

from ppo_learner.config import LearnerConfig
from ppo_learner.value_losses import value_loss
from tests.ppo_learner import numpy_reference

VARIANTS = [(clip, delta) for clip in (None, 0.3) for delta in (None, 0.7)]


def test_value_clip_takes_the_worse_of_free_and_clipped() -> None:
    # Old value 0, return 1, ε 0.2: a value of 0.9 counts as 0.2, ½·0.8²; a value of −1 stays free, ½·2².
    # Against a return of −1 the value of −1 counts as −0.2, ½·0.8².
    values = torch.tensor([0.9, -1.0, 0.1, -1.0], dtype=torch.float64, requires_grad=True)
    returns = torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    losses, clipped = value_loss(values, torch.zeros_like(returns), returns, LearnerConfig())
    torch.testing.assert_close(losses.detach(), torch.tensor([0.32, 2.0, 0.405, 0.32], dtype=torch.float64))
    assert clipped.tolist() == [1, 0, 0, -1]
    losses.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.tensor([0.0, -2.0, -0.9, 0.0], dtype=torch.float64))


def test_beyond_delta_an_error_counts_linearly() -> None:
    # δ = 1: an error of ½ counts ⅛; one of 3 counts 1·(3 − ½), with a gradient of 1.
    values = torch.tensor([0.5, -3.0], dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(2, dtype=torch.float64)
    losses, _ = value_loss(values, zeros, zeros, LearnerConfig(value_clip=None, value_huber_delta=1.0))
    torch.testing.assert_close(losses.detach(), torch.tensor([0.125, 2.5], dtype=torch.float64))
    losses.sum().backward()
    assert values.grad is not None and values.grad.tolist() == [0.5, -1.0]


@pytest.mark.parametrize(("clip", "delta"), VARIANTS)
def test_the_value_loss_agrees_with_numpy(clip: float | None, delta: float | None) -> None:
    torch.manual_seed(0)
    values, old, returns = torch.randn(3, 200, dtype=torch.float64)
    found = value_loss(values, old, returns, LearnerConfig(value_clip=clip, value_huber_delta=delta)).losses
    expected = numpy_reference.clipped_value_loss(
        values.numpy(), old.numpy(), returns.numpy(), np.inf if clip is None else clip, delta or np.inf
    )
    np.testing.assert_allclose(found.numpy(), expected)


@pytest.mark.parametrize(("clip", "delta"), VARIANTS)
def test_the_value_loss_has_the_gradient_of_finite_differences(clip: float | None, delta: float | None) -> None:
    torch.manual_seed(2)
    values = torch.randn(20, dtype=torch.float64, requires_grad=True)
    old, returns = torch.randn(2, 20, dtype=torch.float64)
    config = LearnerConfig(value_clip=clip, value_huber_delta=delta)
    assert torch.autograd.gradcheck(lambda v: value_loss(v, old, returns, config).losses, (values,))
