"""Policy losses against hand-worked numbers, NumPy loops and finite differences."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppo_learner.algorithms import ALGORITHMS
from ppo_learner.config import LearnerConfig
from ppo_learner.losses import POLICY_LOSSES, TokenLoss, cispo, gspo, ppo_clip, reinforce, sapo
from tests.ppo_learner import numpy_policy_losses as reference
from tests.ppo_learner.columns import logs, tokens

LENGTHS = [4, 1, 7, 8]
ROWS = torch.repeat_interleave(torch.tensor(LENGTHS))
WITH_A_BOUND = {"ppo_clip": "grpo", "gspo": "gspo", "cispo": "cispo", "sapo": "sapo", "reinforce": "rloo"}
"""An algorithm that has each loss, so that the loss's own settings may be given."""


def loss_of(
    name: str, new: Tensor, old: Tensor, advantages: Tensor, rows: Tensor | None = None, **settings: Any
) -> TokenLoss:
    """One sequence, unless `rows` says otherwise."""
    config = LearnerConfig.model_validate({"algorithm": WITH_A_BOUND[name]} | settings)
    return POLICY_LOSSES[name](new, old, advantages, torch.zeros(len(new)).long() if rows is None else rows, config)


def test_ppo_clip_worked_by_hand() -> None:
    # Ratios 1.5, 0.5, 1.5, 0.5. The clip holds good news at 1.2 and bad news at 0.8, and never the other way.
    new, old = logs(0.6, 0.2, 0.6, 0.2), logs(0.4, 0.4, 0.4, 0.4)
    losses, clipped = loss_of("ppo_clip", new, old, tokens(2.0, 2.0, -2.0, -2.0))
    torch.testing.assert_close(losses, tokens(-2.4, -1.0, 3.0, 1.6))
    assert clipped.tolist() == [1, 0, 0, -1]


def test_ppo_clip_ranges_may_differ() -> None:
    losses, _ = loss_of(
        "ppo_clip", logs(0.6, 0.2), logs(0.4, 0.4), tokens(1.0, -1.0), clip_ratio_low=0.1, clip_ratio_high=0.3
    )
    torch.testing.assert_close(losses, tokens(-1.3, 0.9))


def test_the_dual_clip_holds_bad_news_whose_ratio_exploded_and_nothing_else() -> None:
    # Ratios 4, 4, 2, 0.5 and c = 3: only the first, of A < 0 and a ratio above 3, is held, at 3·2.
    new, old = logs(0.4, 0.4, 0.2, 0.05).requires_grad_(), logs(0.1, 0.1, 0.1, 0.1)
    losses, clipped = loss_of("ppo_clip", new, old, tokens(-2.0, 2.0, -2.0, -2.0), dual_clip=3.0)
    torch.testing.assert_close(losses, tokens(6.0, -2.4, 4.0, 1.6))
    assert clipped.tolist() == [1, 1, 0, -1]
    losses.sum().backward()
    assert new.grad is not None
    torch.testing.assert_close(new.grad, tokens(0.0, 0.0, 4.0, 0.0))


def test_gspo_worked_by_hand() -> None:
    # The first sequence's ratios are 4 and 1: s = √4 = 2, clipped at 1.2 on good news. The second's are ½ and ½.
    new, old = logs(0.4, 0.1, 0.1, 0.1).requires_grad_(), logs(0.1, 0.1, 0.2, 0.2)
    rows = torch.tensor([0, 0, 1, 1])
    options = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2}
    losses, clipped = loss_of("gspo", new, old, tokens(1.0, 1.0, 1.0, 1.0), rows, **options)
    torch.testing.assert_close(losses, tokens(-1.2, -1.2, -0.5, -0.5))
    assert clipped.tolist() == [1, 1, 0, 0]
    losses.sum().backward()
    assert new.grad is not None
    torch.testing.assert_close(new.grad, tokens(0.0, 0.0, -0.5, -0.5))


def test_cispo_worked_by_hand() -> None:
    # Ratios 4, 2 and ¼ as weights, of which the first is cut to 3 and the last raised to ½; each token keeps the
    # gradient of its logprob.
    new, old = logs(0.4, 0.2, 0.1).requires_grad_(), logs(0.1, 0.1, 0.4)
    losses, clipped = loss_of("cispo", new, old, tokens(1.0, -1.0, 1.0), clip_ratio_low=0.5, clip_ratio_high=2.0)
    torch.testing.assert_close(losses, tokens(-3 * math.log(0.4), 2 * math.log(0.2), -0.5 * math.log(0.1)))
    assert clipped.tolist() == [1, 0, -1]
    losses.sum().backward()
    assert new.grad is not None
    torch.testing.assert_close(new.grad, tokens(-3.0, 2.0, -0.5))


def test_sapo_worked_by_hand() -> None:
    # At ratio 1 the gate is 4/τ·½, of gradient 1; at ratio 3 and τ = 1 it is 4·σ(2), of gradient 3·4·σ(2)·σ(−2).
    new, old = logs(0.1, 0.1, 0.3).requires_grad_(), logs(0.1, 0.1, 0.1)
    losses, clipped = loss_of("sapo", new, old, tokens(1.0, -1.0, 1.0), sapo_temperature_negative=2.0)
    gate = 1 / (1 + math.exp(-2))
    torch.testing.assert_close(losses, tokens(-2.0, 1.0, -4 * gate))
    assert not clipped.any()
    losses.sum().backward()
    assert new.grad is not None
    torch.testing.assert_close(new.grad, tokens(-1.0, 1.0, -3 * 4 * gate * (1 - gate)))


def test_reinforce_is_minus_advantage_times_logprob() -> None:
    new = logs(0.5, 0.25).requires_grad_()
    losses, clipped = loss_of("reinforce", new, new.detach(), tokens(2.0, -1.0))
    torch.testing.assert_close(losses.detach(), tokens(2 * math.log(2), -math.log(4)))
    losses.sum().backward()
    assert new.grad is not None
    assert new.grad.tolist() == [-2.0, 1.0]
    assert not clipped.any()


def test_ppo_gradient_raises_good_tokens_lowers_bad_ones_and_leaves_clipped_ones() -> None:
    new = logs(0.4, 0.4, 0.8).requires_grad_()
    loss_of("ppo_clip", new, logs(0.4, 0.4, 0.4), tokens(1.0, -1.0, 1.0)).losses.sum().backward()
    assert new.grad is not None
    torch.testing.assert_close(new.grad, tokens(-1.0, 1.0, 0.0))


REFERENCES: list[tuple[Callable[..., TokenLoss], Callable[..., reference.Floats], dict[str, Any], tuple[Any, ...]]] = [
    (ppo_clip, reference.ppo, {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28}, (0.2, 0.28)),
    (ppo_clip, reference.ppo, {"dual_clip": 1.5}, (0.2, 0.2, 1.5)),
    (gspo, reference.gspo, {"clip_ratio_low": 0.1, "clip_ratio_high": 0.2}, (0.1, 0.2)),
    (cispo, reference.cispo, {"clip_ratio_low": 0.5, "clip_ratio_high": 0.5}, (0.5, 0.5)),
    (sapo, reference.sapo, {"sapo_temperature_positive": 1.1, "sapo_temperature_negative": 1.3}, (1.1, 1.3)),
    (reinforce, reference.reinforce, {}, ()),
]


@pytest.mark.parametrize(("loss", "by_hand", "settings", "arguments"), REFERENCES)
def test_losses_agree_with_numpy_on_random_numbers(
    loss: Callable[..., TokenLoss],
    by_hand: Callable[..., reference.Floats],
    settings: dict[str, Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.manual_seed(0)
    new, old, advantages = torch.randn(3, len(ROWS), dtype=torch.float64)
    found = loss_of(loss.__name__, new, old, advantages, ROWS, **settings).losses
    parts = [np.split(column.numpy(), np.cumsum(LENGTHS)[:-1]) for column in (new, old, advantages)]
    expected = np.concatenate([by_hand(*sequence, *arguments) for sequence in zip(*parts, strict=True)])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_every_loss_has_a_reference() -> None:
    assert {loss.__name__ for loss, *_ in REFERENCES} == set(POLICY_LOSSES)


FROZEN_RATIOS = {"cispo"}
"""Losses whose ratio is a weight: their gradient is by definition that of their value while the ratio stands still."""


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_a_policy_loss_has_the_gradient_of_finite_differences(name: str) -> None:
    # Of sums over sequences, with one advantage for each, where gspo's token-wise gradient is the sequence's.
    torch.manual_seed(1)
    new = torch.randn(len(ROWS), dtype=torch.float64, requires_grad=True)
    old, advantages = torch.randn(len(ROWS), dtype=torch.float64), torch.randn(len(LENGTHS), dtype=torch.float64)[ROWS]
    start = new.detach().clone()  # `gradcheck` moves `new` itself.

    def sums(logprobs: Tensor) -> Tensor:
        # Where the old policy moves along, the ratio does not move.
        moved = (logprobs - start).detach() if name in FROZEN_RATIOS else 0.0
        losses = loss_of(name, logprobs, old + moved, advantages, ROWS).losses
        return torch.zeros(len(LENGTHS), dtype=torch.float64).index_add(0, ROWS, losses)

    assert torch.autograd.gradcheck(sums, (new,))


@pytest.mark.parametrize("name", ["ppo_clip", "gspo"])
def test_the_dual_clip_has_the_gradient_of_finite_differences(name: str) -> None:
    torch.manual_seed(1)
    new = torch.randn(len(ROWS), dtype=torch.float64, requires_grad=True)
    old = torch.randn(len(ROWS), dtype=torch.float64)
    advantages = -torch.rand(len(LENGTHS), dtype=torch.float64)[ROWS]
    bounds = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "dual_clip": 1.3}

    def losses(logprobs: Tensor) -> Tensor:
        return loss_of(name, logprobs, old, advantages, ROWS, **bounds).losses

    def sums(logprobs: Tensor) -> Tensor:
        return torch.zeros(len(LENGTHS), dtype=torch.float64).index_add(0, ROWS, losses(logprobs))

    held = torch.isclose(losses(new), -1.3 * advantages)
    assert 0 < int(held.sum()) < len(ROWS)
    assert torch.autograd.gradcheck(sums, (new,))
    (gradient,) = torch.autograd.grad(losses(new).sum(), new)
    assert not gradient[held].any()


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_every_policy_loss_pulls_good_tokens_up_at_equal_policies(name: str) -> None:
    new = logs(0.3, 0.3).requires_grad_()
    loss_of(name, new, new.detach(), tokens(1.0, -1.0), torch.tensor([0, 1])).losses.sum().backward()
    assert new.grad is not None
    torch.testing.assert_close(new.grad, tokens(-1.0, 1.0))  # Each is the policy gradient there, and no other.


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_a_token_s_loss_depends_on_its_own_sequence_alone(name: str) -> None:
    torch.manual_seed(2)
    new, old, advantages = torch.randn(3, len(ROWS), dtype=torch.float64)
    whole = loss_of(name, new, old, advantages, ROWS)
    here = ROWS == 2
    alone = loss_of(name, new[here], old[here], advantages[here])
    assert torch.equal(whole.losses[here], alone.losses) and torch.equal(whole.clipped[here], alone.clipped)


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_every_policy_loss_survives_a_ratio_that_overflows_and_a_batch_without_a_token(name: str) -> None:
    for size in (1, 0):
        new = torch.zeros(size, requires_grad=True)
        loss_of(name, new, torch.full((size,), -500.0), torch.full((size,), -1.0)).losses.sum().backward()
        assert new.grad is not None and torch.isfinite(new.grad).all()


def test_every_algorithm_names_a_loss_that_exists() -> None:
    assert {algorithm.loss for algorithm in ALGORITHMS.values()} == set(POLICY_LOSSES)
