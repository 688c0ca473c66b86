"""Policy and value losses against hand-worked numbers, NumPy loops and finite differences."""

import math

import numpy as np
import pytest
import torch

from ppo_learner.algorithms import ALGORITHMS
from ppo_learner.config import LearnerConfig
from ppo_learner.losses import POLICY_LOSSES, ppo_clip_loss, reinforce_loss, token_weights, value_loss
from tests.ppo_learner import numpy_reference


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_ppo_clip_worked_by_hand() -> None:
    # Ratios 1.5, 0.5, 1.5, 0.5. The clip holds good news at 1.2 and bad news at 0.8, and never the other way.
    new, old = logs(0.6, 0.2, 0.6, 0.2), logs(0.4, 0.4, 0.4, 0.4)
    advantages = torch.tensor([2.0, 2.0, -2.0, -2.0], dtype=torch.float64)
    losses, clipped = ppo_clip_loss(new, old, advantages, clip_ratio_low=0.2, clip_ratio_high=0.2)
    torch.testing.assert_close(losses, torch.tensor([-2.4, -1.0, 3.0, 1.6], dtype=torch.float64))
    assert clipped.tolist() == [True, False, False, True]


def test_ppo_clip_ranges_may_differ() -> None:
    new, old = logs(0.6, 0.2), logs(0.4, 0.4)
    advantages = torch.tensor([1.0, -1.0], dtype=torch.float64)
    losses, _ = ppo_clip_loss(new, old, advantages, clip_ratio_low=0.1, clip_ratio_high=0.3)
    torch.testing.assert_close(losses, torch.tensor([-1.3, 0.9], dtype=torch.float64))


def test_ppo_gradient_raises_good_tokens_lowers_bad_ones_and_leaves_clipped_ones() -> None:
    new = logs(0.4, 0.4, 0.8).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    losses, _ = ppo_clip_loss(new, logs(0.4, 0.4, 0.4), advantages, clip_ratio_low=0.2, clip_ratio_high=0.2)
    losses.sum().backward()
    assert new.grad is not None
    torch.testing.assert_close(new.grad, torch.tensor([-1.0, 1.0, 0.0], dtype=torch.float64))


def test_ppo_survives_a_ratio_that_overflows() -> None:
    new = torch.tensor([0.0], requires_grad=True)
    losses, _ = ppo_clip_loss(
        new, torch.tensor([-500.0]), torch.tensor([-1.0]), clip_ratio_low=0.2, clip_ratio_high=0.2
    )
    losses.sum().backward()
    assert new.grad is not None and torch.isfinite(new.grad).all()


def test_reinforce_is_minus_advantage_times_logprob() -> None:
    new = logs(0.5, 0.25).requires_grad_()
    losses, clipped = reinforce_loss(new, torch.tensor([2.0, -1.0], dtype=torch.float64))
    torch.testing.assert_close(losses.detach(), torch.tensor([2 * math.log(2), -math.log(4)], dtype=torch.float64))
    losses.sum().backward()
    assert new.grad is not None
    assert new.grad.tolist() == [-2.0, 1.0]
    assert not clipped.any()


def test_value_clip_takes_the_worse_of_free_and_clipped() -> None:
    # Old value 0, return 1, ε 0.2: a value of 0.9 counts as 0.2, ½·0.8²; a value of −1 stays free, ½·2².
    values = torch.tensor([0.9, -1.0, 0.1], dtype=torch.float64, requires_grad=True)
    zeros, ones = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    losses, clipped = value_loss(values, zeros, ones, clip=0.2)
    torch.testing.assert_close(losses.detach(), torch.tensor([0.32, 2.0, 0.405], dtype=torch.float64))
    assert clipped.tolist() == [True, False, False]
    losses.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.tensor([0.0, -2.0, -0.9], dtype=torch.float64))


def test_losses_agree_with_numpy_on_random_numbers() -> None:
    torch.manual_seed(0)
    new, old, third = torch.randn(3, 200, dtype=torch.float64)
    ppo = ppo_clip_loss(new, old, third, clip_ratio_low=0.2, clip_ratio_high=0.28).losses
    value = value_loss(new, old, third, clip=0.3).losses
    np.testing.assert_allclose(
        ppo.numpy(), numpy_reference.ppo_clip(new.numpy(), old.numpy(), third.numpy(), 0.2, 0.28)
    )
    np.testing.assert_allclose(
        value.numpy(), numpy_reference.clipped_value_loss(new.numpy(), old.numpy(), third.numpy(), 0.3)
    )


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_every_policy_loss_has_the_gradient_of_finite_differences(name: str) -> None:
    torch.manual_seed(1)
    new = torch.randn(20, dtype=torch.float64, requires_grad=True)
    old, advantages = torch.randn(2, 20, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda logprobs: POLICY_LOSSES[name](logprobs, old, advantages, LearnerConfig()).losses, (new,)
    )


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_every_policy_loss_pulls_good_tokens_up_at_equal_policies(name: str) -> None:
    new = logs(0.3, 0.3).requires_grad_()
    losses = POLICY_LOSSES[name](new, new.detach(), torch.tensor([1.0, -1.0]), LearnerConfig()).losses
    losses.sum().backward()
    assert new.grad is not None and new.grad[0] < 0 < new.grad[1]


@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_value_loss_has_the_gradient_of_finite_differences(clip: float | None) -> None:
    torch.manual_seed(2)
    values = torch.randn(20, dtype=torch.float64, requires_grad=True)
    old, returns = torch.randn(2, 20, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: value_loss(v, old, returns, clip=clip).losses, (values,))


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_token_weights_sum_to_one(aggregation: str) -> None:
    counts = torch.tensor([3, 0, 1, 12])
    assert float((token_weights(counts, aggregation) * counts).sum()) == pytest.approx(1.0, abs=1e-12)


def test_token_weights_weigh_tokens_or_completions_alike() -> None:
    counts = torch.tensor([3, 0, 1])
    assert token_weights(counts, "token_mean").tolist() == [0.25, 0.25, 0.25]
    torch.testing.assert_close(
        token_weights(counts, "sequence_mean")[[0, 2]], torch.tensor([1 / 6, 1 / 2], dtype=torch.float64)
    )


def test_every_algorithm_names_a_loss_that_exists() -> None:
    assert {algorithm.loss for algorithm in ALGORITHMS.values()} == set(POLICY_LOSSES)
