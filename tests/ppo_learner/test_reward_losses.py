"""Reward-model losses against hand-worked numbers, NumPy loops and finite differences."""

import math

import numpy as np
import pytest
import torch

from ppo_learner.reward_losses import (
    REWARD_LOSSES,
    bradley_terry_loss,
    cross_entropy_loss,
    plackett_luce_loss,
    squared_error_loss,
)
from ppo_learner.reward_objectives import REWARD_OBJECTIVES
from tests.ppo_learner import numpy_reference


def double(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def drawn(counts: list[int], *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, labels and mask of examples with so many scores each."""
    draw = np.random.default_rng(seed)
    shape = (len(counts), max(counts))
    mask = torch.arange(shape[1])[None, :] < torch.tensor(counts)[:, None]
    return torch.tensor(draw.normal(size=shape)), torch.tensor(draw.uniform(size=shape)), mask


def counts_for(name: str) -> list[int]:
    return [2, 2, 2] if name == "bradley_terry" else [3, 1, 4]


def test_bradley_terry_worked_by_hand() -> None:
    # Leads ln 3, ln 3 with a margin of ln 3, and −ln 3: σ is 3/4, 1/2 and 1/4.
    lead = math.log(3)
    scores, targets = double([lead + 1, 1], [lead, 0], [0, lead]), double([0, 0], [lead + 2, 2], [0, 0])
    losses = bradley_terry_loss(scores, targets, torch.ones(3, 2, dtype=torch.bool))
    torch.testing.assert_close(losses, double([math.log(4 / 3), math.log(2), math.log(4)])[0])


def test_bradley_terry_raises_the_chosen_and_lowers_the_rejected_by_the_chance_of_error() -> None:
    scores = double([math.log(3), 0]).requires_grad_()
    bradley_terry_loss(scores, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)).sum().backward()
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, double([-0.25, 0.25]))


def test_plackett_luce_worked_by_hand() -> None:
    # Weights 2, 1, 1: the best is drawn with 2/4, the next with 1/2, the last is alone.
    scores = double([math.log(2), 0, 0])
    losses = plackett_luce_loss(scores, torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(losses, double([math.log(2) + math.log(2)])[0])


def test_plackett_luce_of_two_is_bradley_terry() -> None:
    scores, _, mask = drawn([2, 2, 2])
    nothing = torch.zeros_like(scores)
    torch.testing.assert_close(plackett_luce_loss(scores, nothing, mask), bradley_terry_loss(scores, nothing, mask))


def test_labelled_losses_worked_by_hand() -> None:
    # σ is 3/4 and 1/2; labels 1 and 1/2 cost ln 4/3 and ln 2.
    scores, labels, mask = double([math.log(3), 0]), double([1, 0.5]), torch.ones(1, 2, dtype=torch.bool)
    torch.testing.assert_close(cross_entropy_loss(scores, labels, mask), double([math.log(8 / 3)])[0])
    squared = squared_error_loss(double([2, -1]), labels, mask)
    torch.testing.assert_close(squared, double([1 + 2.25])[0])


@pytest.mark.parametrize("name", REWARD_LOSSES)
def test_each_loss_is_the_one_of_its_paper_row_by_row(name: str) -> None:
    counts = counts_for(name)
    scores, targets, mask = drawn(counts)
    expected = [
        getattr(numpy_reference, name)(scores[i, :count].numpy(), targets[i, :count].numpy())
        for i, count in enumerate(counts)
    ]
    np.testing.assert_allclose(REWARD_LOSSES[name](scores, targets, mask).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("name", REWARD_LOSSES)
def test_each_gradient_is_that_of_finite_differences_and_filling_has_none(name: str) -> None:
    scores, targets, mask = drawn(counts_for(name))
    scores.requires_grad_()
    loss = REWARD_LOSSES[name]
    assert torch.autograd.gradcheck(lambda values: loss(values, targets, mask), scores)
    loss(scores, targets, mask).sum().backward()
    assert scores.grad is not None
    assert not scores.grad[~mask].any()
    wild = torch.where(mask, scores.detach(), 1e9)
    torch.testing.assert_close(loss(wild, targets, mask), loss(scores, targets, mask).detach())


@pytest.mark.parametrize("name", REWARD_LOSSES)
def test_extreme_scores_give_a_finite_gradient(name: str) -> None:
    scores = torch.tensor([[-3e4, 3e4], [3e4, -3e4]], requires_grad=True)
    loss = REWARD_LOSSES[name](scores, torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert scores.grad is not None and torch.isfinite(scores.grad).all()


def test_every_objective_names_a_loss_that_exists() -> None:
    assert {objective.loss for objective in REWARD_OBJECTIVES.values()} == REWARD_LOSSES.keys()
