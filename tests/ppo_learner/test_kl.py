"""KL estimators against the KL itself, and the control of its coefficient."""

import math

import numpy as np
import pytest
import torch

from ppo_learner.kl import KL_ESTIMATORS, next_kl_coefficient
from tests.ppo_learner import numpy_objective

POLICY = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REFERENCE = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
TRUE_KL = float((POLICY * (POLICY / REFERENCE).log()).sum())


def test_estimators_of_one_token_worked_by_hand() -> None:
    # π = ½, π_ref = ¼: the log ratio is ln 2.
    new, reference = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    assert float(KL_ESTIMATORS["k1"](new, reference)) == pytest.approx(math.log(2))
    assert float(KL_ESTIMATORS["k2"](new, reference)) == pytest.approx(math.log(2) ** 2 / 2)
    assert float(KL_ESTIMATORS["k3"](new, reference)) == pytest.approx(0.5 - 1 + math.log(2))


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_every_estimator_agrees_with_numpy(name: str) -> None:
    torch.manual_seed(0)
    new, reference = torch.randn(2, 50, dtype=torch.float64)
    expected = numpy_objective.kl_estimates(name, new.numpy(), reference.numpy())
    np.testing.assert_allclose(KL_ESTIMATORS[name](new, reference).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_k1_and_k3_have_the_kl_as_their_mean(name: str) -> None:
    estimates = KL_ESTIMATORS[name](POLICY.log(), REFERENCE.log())
    assert float((POLICY * estimates).sum()) == pytest.approx(TRUE_KL, abs=1e-12)


def test_the_gradient_of_k2_is_that_of_the_kl() -> None:
    logits = POLICY.log().requires_grad_()
    logprobs = torch.log_softmax(logits, 0)
    (expected,) = torch.autograd.grad((logprobs.exp() * (logprobs - REFERENCE.log())).sum(), logits, retain_graph=True)
    (found,) = torch.autograd.grad((POLICY * KL_ESTIMATORS["k2"](logprobs, REFERENCE.log())).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_k3_is_never_negative_and_survives_an_overflow() -> None:
    new = torch.tensor([-1.0, -500.0, -3.0], requires_grad=True)
    estimates = KL_ESTIMATORS["k3"](new, torch.tensor([-2.0, 0.0, -3.0]))
    estimates.sum().backward()
    assert (estimates >= 0).all()
    assert new.grad is not None and torch.isfinite(new.grad).all()


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_every_estimator_is_zero_between_equals_and_differentiable(name: str) -> None:
    equal = torch.randn(5, dtype=torch.float64)
    assert not KL_ESTIMATORS[name](equal, equal).any()
    assert torch.autograd.gradcheck(
        lambda new: KL_ESTIMATORS[name](new, torch.zeros(5, dtype=torch.float64)), (equal.requires_grad_(),)
    )


def test_the_adaptive_coefficient_worked_by_hand() -> None:
    # KL 10% over target: β·(1 + 0.1·256/10000)
    assert next_kl_coefficient(0.2, kl=6.6, target=6.0, horizon=10_000, num_completions=256) == pytest.approx(
        0.2 * (1 + 0.1 * 256 / 10_000)
    )


def test_the_adaptive_coefficient_follows_the_kl_and_is_bounded() -> None:
    up = next_kl_coefficient(1.0, kl=600.0, target=6.0, horizon=1000, num_completions=100)
    down = next_kl_coefficient(1.0, kl=-5.0, target=6.0, horizon=1000, num_completions=100)
    assert (up, down) == (pytest.approx(1.02), pytest.approx(0.98))


def test_a_fixed_coefficient_stays() -> None:
    assert next_kl_coefficient(0.3, kl=9.0, target=None, horizon=1, num_completions=64) == 0.3


@pytest.mark.parametrize("kl", [math.nan, math.inf, -math.inf])
def test_a_kl_that_is_not_finite_leaves_the_adaptive_coefficient_as_it_was(kl: float) -> None:
    assert next_kl_coefficient(0.3, kl=kl, target=6.0, horizon=1000, num_completions=64) == 0.3
