"""What stands beside the policy's loss, entropy and KL, and the objective of values: by hand, NumPy, differences."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppo_learner.config import LearnerConfig
from ppo_learner.kl import KL_ESTIMATORS
from ppo_learner.objective import SUMS, Objective, policy_objective, value_objective
from tests.ppo_learner import numpy_objective, numpy_reference
from tests.ppo_learner.columns import columns_of, logs, micro_batch_of, tokens

LN2 = math.log(2)
WEIGHTS = tokens(0.25, 0.75)
IN_LOSS = {"kl_placement": "loss"}


def of_policy(
    new: Tensor,
    *,
    entropy: Tensor | None = None,
    weights: Tensor = WEIGHTS,
    kl_coefficient: float = 0.0,
    settings: dict[str, Any] | None = None,
    **columns: Tensor,
) -> Objective:
    """Each token a sequence of its own; without advantages there is no loss but what stands beside it."""
    lengths = [1] * len(new)
    return policy_objective(
        new,
        torch.zeros_like(new) if entropy is None else entropy,
        micro_batch_of(lengths),
        columns_of(lengths, **{"behaviour_logprobs": new.detach()} | columns),
        weights,
        LearnerConfig.model_validate({"algorithm": "grpo"} | (settings or {})),
        kl_coefficient=kl_coefficient,
    )


def of_values(values: Tensor, old: Tensor, targets: Tensor, weights: Tensor = WEIGHTS, **settings: Any) -> Objective:
    lengths = [1] * len(values)
    experience = columns_of(lengths, old_values=old, targets=targets)
    return value_objective(values, micro_batch_of(lengths), experience, weights, LearnerConfig(**settings))


def named(objective: Objective) -> dict[str, float]:
    return dict(zip(SUMS, objective.sums.tolist(), strict=True))


def test_the_entropy_bonus_worked_by_hand() -> None:
    # ¼·½ + ¾·2 = 1.625, of which a tenth is taken off the loss.
    entropy = tokens(0.5, 2.0).requires_grad_()
    loss = of_policy(logs(0.5, 0.5), entropy=entropy, settings={"entropy_coefficient": 0.1}).loss
    assert loss.item() == pytest.approx(-0.1625, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, entropy)
    torch.testing.assert_close(gradient, tokens(-0.025, -0.075))


@pytest.mark.parametrize(
    ("estimator", "value", "gradient"),
    [
        ("k1", 0.25 * LN2 - 0.75 * 2 * LN2, (0.25, 0.75)),
        ("k2", 0.25 * LN2**2 / 2 + 0.75 * (2 * LN2) ** 2 / 2, (0.25 * LN2, -0.75 * 2 * LN2)),
        ("k3", 0.25 * (LN2 - 1 / 2) + 0.75 * (3 - 2 * LN2), (0.25 / 2, -0.75 * 3)),
    ],
    ids=["k1", "k2", "k3"],
)
def test_the_kl_in_the_loss_worked_by_hand(estimator: str, value: float, gradient: tuple[float, float]) -> None:
    # π_ref/π is ½ and 4, so log π/π_ref is ln 2 and −2 ln 2; k3's gradient is 1 − π_ref/π.
    new, reference = logs(0.5, 0.125).requires_grad_(), logs(0.25, 0.5)
    settings = IN_LOSS | {"kl_estimator": estimator}
    loss = of_policy(new, reference_logprobs=reference, kl_coefficient=0.1, settings=settings).loss
    assert loss.item() == pytest.approx(0.1 * value, abs=1e-12)
    (found,) = torch.autograd.grad(loss, new)
    torch.testing.assert_close(found, 0.1 * tokens(*gradient))


def test_a_penalty_that_the_rewards_have_paid_is_no_part_of_the_loss() -> None:
    reference, settings = logs(0.25, 0.5), {"kl_placement": "reward"}
    found = of_policy(logs(0.5, 0.125), reference_logprobs=reference, kl_coefficient=0.1, settings=settings)
    assert found.loss == 0


def drawn(seed: int, *, num_columns: int, num_tokens: int = 40) -> list[Tensor]:
    torch.manual_seed(seed)
    return list(0.5 * torch.randn(num_columns, num_tokens, dtype=torch.float64))


@pytest.mark.parametrize("correction", ["none", "token_tis"])
@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_the_whole_objective_agrees_with_numpy(estimator: str, correction: str) -> None:
    new, start, behaviour, reference, advantages = drawn(0, num_columns=5)
    entropy, weights = torch.rand(2, len(new), dtype=torch.float64)
    found = of_policy(
        new,
        entropy=entropy,
        weights=weights,
        kl_coefficient=0.3,
        settings=IN_LOSS | {"kl_estimator": estimator, "entropy_coefficient": 0.7, "importance_correction": correction},
        start_logprobs=start,
        behaviour_logprobs=behaviour,
        reference_logprobs=reference,
        advantages=advantages,
    ).loss
    columns = new.numpy(), start.numpy(), advantages.numpy()
    ratios = [np.exp([s - b]) for s, b in zip(start.numpy(), behaviour.numpy(), strict=True)]
    importance = np.concatenate(numpy_reference.importance_weights(correction, ratios, cap=2.0, low=0.5, high=5.0))
    expected = numpy_objective.policy_objective(
        weights.numpy(),
        importance * numpy_reference.ppo_clip(*columns, 0.2, 0.2),
        numpy_objective.kl_estimates(estimator, new.numpy(), reference.numpy()),
        entropy.numpy(),
        kl_coefficient=0.3,
        entropy_coefficient=0.7,
    )
    assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_the_whole_objective_has_the_gradient_of_finite_differences(estimator: str) -> None:
    new, start, reference, advantages = drawn(1, num_columns=4, num_tokens=12)
    entropy, weights = torch.rand(2, len(new), dtype=torch.float64)
    settings = IN_LOSS | {"kl_estimator": estimator, "entropy_coefficient": 0.7}

    def loss(new: Tensor, entropy: Tensor) -> Tensor:
        columns = {"start_logprobs": start, "reference_logprobs": reference, "advantages": advantages}
        return of_policy(new, entropy=entropy, weights=weights, kl_coefficient=0.3, settings=settings, **columns).loss

    assert torch.autograd.gradcheck(loss, (new.requires_grad_(), entropy.requires_grad_()))


def test_what_a_policy_s_micro_batch_adds_to_the_metrics_worked_by_hand() -> None:
    # Ratios 2, ¼ and 1 against 1.2 and 0.8 under good, bad and good news: the first two are held, above and below.
    # KL of π_prox to π: 2 − 1 − ln 2 and ¼ − 1 + 2 ln 2. Terms beside the loss are not in it.
    found = of_policy(
        logs(0.4, 0.05, 0.3),
        entropy=tokens(1.0, 2.0, 4.0),
        weights=tokens(0.5, 0.25, 0.25),
        kl_coefficient=0.1,
        settings=IN_LOSS | {"kl_estimator": "k3", "entropy_coefficient": 0.7},
        start_logprobs=logs(0.2, 0.2, 0.3),
        reference_logprobs=logs(0.1, 0.1, 0.1),
        advantages=tokens(1.0, -2.0, 1.0),
    )
    assert named(found) == pytest.approx(
        {
            "policy_loss": -0.5 * 1.2 + 0.25 * 0.8 * 2 - 0.25,
            "entropy": 2.0,
            "kl/old": 0.5 * (1 - LN2) + 0.25 * (2 * LN2 - 0.75),
            "clip_fraction": 0.75,
            "clip_fraction/low": 0.25,
            "clip_fraction/high": 0.5,
        }
        | {name: 0.0 for name in SUMS if name.startswith("value")},
        rel=1e-6,
    )
    assert found.ratio_range.tolist() == pytest.approx([2 * LN2, LN2])


def test_the_value_objective_worked_by_hand() -> None:
    # Errors 1 and −2 without a clip: c·(¼·½ + ¾·2) with c = 0.4; the metric is without c.
    values, targets = tokens(2.0, 0.0).requires_grad_(), tokens(1.0, 2.0)
    found = of_values(values, tokens(0.0, 0.0), targets, value_clip=None, value_coefficient=0.4)
    assert found.loss.item() == pytest.approx(0.4 * 1.625)
    (gradient,) = torch.autograd.grad(found.loss, values)
    torch.testing.assert_close(gradient, 0.4 * tokens(0.25, -1.5))
    assert named(found) == dict.fromkeys(SUMS, 0.0) | {"value_loss": 1.625}
    assert found.ratio_range.tolist() == [0.0, 0.0]


def test_what_a_critic_s_micro_batch_adds_to_the_metrics_worked_by_hand() -> None:
    # Both move by 1 towards their targets and past them: 0.2 above the old value counts, and 0.2 below.
    found = named(of_values(tokens(1.0, -1.0), tokens(0.0, 0.0), tokens(1.0, -1.0)))
    assert found["value_loss"] == pytest.approx(0.5 * 0.8**2)
    assert (found["value_clip_fraction"], found["value_clip_fraction/low"]) == (1.0, 0.75)
    assert found["value_clip_fraction/high"] == 0.25


@pytest.mark.parametrize("huber_delta", [None, 0.4])
def test_the_value_objective_agrees_with_numpy_and_with_finite_differences(huber_delta: float | None) -> None:
    values, old, targets = drawn(2, num_columns=3)
    weights = torch.rand(len(values), dtype=torch.float64)
    settings = {"value_clip": 0.3, "value_huber_delta": huber_delta, "value_coefficient": 0.7}
    losses = numpy_reference.clipped_value_loss(
        values.numpy(), old.numpy(), targets.numpy(), 0.3, huber_delta or np.inf
    )
    found = of_values(values, old, targets, weights, **settings).loss
    assert found.item() == pytest.approx(0.7 * float(sum(weights.numpy() * losses)), rel=1e-12)
    assert torch.autograd.gradcheck(
        lambda values: of_values(values, old, targets, weights, **settings).loss, (values.requires_grad_(),)
    )
