"""Preference losses against hand-worked numbers, NumPy from the papers and finite differences; which settings fit."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ppo_learner.preference_algorithms import PREFERENCE_ALGORITHMS
from ppo_learner.preference_config import PreferenceConfig
from ppo_learner.preference_losses import PREFERENCE_LOSSES, JudgedLogprobs, kto_reference_point, nll_loss
from tests.ppo_learner import numpy_preferences

OF_PAIRS = [name for name, parts in PREFERENCE_ALGORITHMS.items() if parts.examples == "pairs"]
LN3 = math.log(3)


def config(algorithm: str, **settings: Any) -> PreferenceConfig:
    return PreferenceConfig.model_validate({"algorithm": algorithm} | settings)


def pairs(
    policy: list[list[float]], reference: list[list[float]] | None = None, num_tokens: list[list[int]] | None = None
) -> JudgedLogprobs:
    scores = torch.tensor(policy, dtype=torch.float64)
    return JudgedLogprobs(
        policy=scores,
        reference=torch.tensor(reference, dtype=torch.float64) if reference else torch.zeros_like(scores),
        num_tokens=torch.tensor(num_tokens) if num_tokens else torch.ones_like(scores),
        desirable=torch.tensor([[True, False]] * len(policy)),
        reference_point=torch.zeros(()),
    )


def labels(policy: list[float], desirable: list[bool], *, point: float = 0.0) -> JudgedLogprobs:
    scores = torch.tensor(policy, dtype=torch.float64)[:, None]
    return JudgedLogprobs(
        policy=scores,
        reference=torch.zeros_like(scores),
        num_tokens=torch.ones_like(scores),
        desirable=torch.tensor(desirable)[:, None],
        reference_point=torch.tensor(point, dtype=torch.float64),
    )


def loss_of(name: str, logprobs: JudgedLogprobs, **settings: Any) -> list[float]:
    losses: list[float] = PREFERENCE_LOSSES[name](logprobs, config(name, **settings)).losses.tolist()
    return losses


def drawn(name: str, *, seed: int = 0, rows: int = 6) -> tuple[JudgedLogprobs, list[list[np.ndarray]]]:
    """Random completions of 1 to 7 tokens, and the logprobs of those tokens."""
    draw = np.random.default_rng(seed)
    width = 2 if name in OF_PAIRS else 1
    tokens = [[-draw.exponential(1.0, draw.integers(1, 8)) for _ in range(width)] for _ in range(rows)]
    policy = torch.tensor([[one.sum() for one in row] for row in tokens])
    return (
        JudgedLogprobs(
            policy=policy,
            reference=policy + torch.tensor(draw.normal(size=policy.shape)),
            num_tokens=torch.tensor([[len(one) for one in row] for row in tokens]),
            desirable=torch.tensor([[True, False]] * rows if width == 2 else [[bool(i % 2)] for i in range(rows)]),
            reference_point=torch.tensor(0.3, dtype=torch.float64),
        ),
        tokens,
    )


def test_dpo_worked_by_hand() -> None:
    # Log ratios 2 and −1 lead by 3, and the other way round; β = ln 3 / 3 makes that ±ln 3, whose σ is 3/4 and 1/4.
    logprobs = pairs([[-1, -4], [-4, -1]], [[-3, -3], [-3, -3]])
    assert loss_of("dpo", logprobs, beta=LN3 / 3) == pytest.approx([math.log(4 / 3), math.log(4)], rel=1e-12)


def test_cdpo_and_robust_dpo_worked_by_hand() -> None:
    # L(h) = ln 4/3 and L(−h) = ln 4, with a fifth of the labels wrong.
    logprobs = pairs([[LN3, 0]])
    right, wrong = math.log(4 / 3), math.log(4)
    settings = {"beta": 1.0, "label_smoothing": 0.2}
    assert loss_of("cdpo", logprobs, **settings) == pytest.approx([0.8 * right + 0.2 * wrong])
    assert loss_of("robust_dpo", logprobs, **settings) == pytest.approx([(0.8 * right - 0.2 * wrong) / 0.6])


def test_robust_dpo_of_flipped_labels_is_dpo_of_true_ones_on_average() -> None:
    true, flipped = pairs([[LN3, 0]]), pairs([[0, LN3]])
    (of_true,), (of_flipped,) = (loss_of("robust_dpo", p, beta=1.0, label_smoothing=0.2) for p in (true, flipped))
    assert [0.8 * of_true + 0.2 * of_flipped] == pytest.approx(loss_of("dpo", true, beta=1.0))


def test_ipo_worked_by_hand_and_is_over_at_its_margin() -> None:
    # τ = 1/4 asks for a lead of 2; leads of 3, 2 and −1 are off by 1, 0 and 3.
    assert loss_of("ipo", pairs([[3, 0], [2, 0], [0, 1]]), beta=0.25) == pytest.approx([1, 0, 9])


def test_simpo_worked_by_hand() -> None:
    # Means −1 and −2 whatever the lengths; 2·1 − (2 − ln 3) = ln 3.
    logprobs = pairs([[-2, -8]], num_tokens=[[2, 4]])
    assert loss_of("simpo", logprobs, beta=2.0, target_margin=2 - LN3) == pytest.approx([math.log(4 / 3)])


def test_orpo_worked_by_hand() -> None:
    # Probabilities per token of 1/2 and 1/4: odds 1 and 1/3, whose ratio 3 has σ(ln 3) = 3/4.
    logprobs = pairs([[2 * math.log(1 / 2), 3 * math.log(1 / 4)]], num_tokens=[[2, 3]])
    assert loss_of("orpo", logprobs, odds_ratio_weight=0.5) == pytest.approx([math.log(2) + 0.5 * math.log(4 / 3)])


def test_kto_worked_by_hand() -> None:
    # β·(r − z) = ±ln 3: σ is 3/4 where the completion is on its side and 1/4 where it is not.
    logprobs = labels([1 + LN3, 1 + LN3, 1 - LN3, 1 - LN3], [True, False, True, False], point=1.0)
    settings = {"beta": 1.0, "desirable_weight": 2.0, "undesirable_weight": 3.0}
    assert loss_of("kto", logprobs, **settings) == pytest.approx([2 / 4, 3 * 3 / 4, 2 * 3 / 4, 3 / 4])


def test_ktos_reference_point_is_a_mean_that_is_never_negative() -> None:
    assert float(kto_reference_point(torch.tensor([1.0, -0.5, 2.5]))) == 1.0
    assert float(kto_reference_point(torch.tensor([1.0, -4.0]))) == 0.0


def test_the_likelihood_term_is_of_the_chosen_completions_tokens() -> None:
    assert nll_loss(pairs([[-6, -1]], num_tokens=[[3, 5]])).tolist() == [2.0]


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_each_loss_is_the_one_of_its_paper_row_by_row(name: str) -> None:
    logprobs, tokens = drawn(name)
    extra: dict[str, dict[str, Any]] = {
        "cdpo": {"label_smoothing": 0.15},
        "robust_dpo": {"label_smoothing": 0.15},
        "simpo": {"target_margin": 0.7},
        "orpo": {"odds_ratio_weight": 0.3},
        "kto": {"desirable_weight": 1.5, "undesirable_weight": 0.8},
    }
    settings = extra.get(name, {}) | ({} if name == "orpo" else {"beta": 0.4})
    reference = logprobs.reference.tolist()
    expected = {
        "dpo": lambda i: numpy_preferences.dpo(*tokens[i], tuple(reference[i]), 0.4),
        "cdpo": lambda i: numpy_preferences.cdpo(*tokens[i], tuple(reference[i]), 0.4, 0.15),
        "robust_dpo": lambda i: numpy_preferences.robust_dpo(*tokens[i], tuple(reference[i]), 0.4, 0.15),
        "ipo": lambda i: numpy_preferences.ipo(*tokens[i], tuple(reference[i]), 0.4),
        "simpo": lambda i: numpy_preferences.simpo(*tokens[i], 0.4, 0.7),
        "orpo": lambda i: numpy_preferences.orpo(*tokens[i], 0.3),
        "kto": lambda i: numpy_preferences.kto(tokens[i][0], reference[i][0], bool(i % 2), 0.3, 0.4, (1.5, 0.8)),
    }[name]
    np.testing.assert_allclose(loss_of(name, logprobs, **settings), [expected(i) for i in range(6)], rtol=1e-9)


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_each_gradient_is_that_of_finite_differences_and_widens_the_lead(name: str) -> None:
    logprobs, _ = drawn(name)
    policy = logprobs.policy.requires_grad_()

    def losses(values: torch.Tensor) -> torch.Tensor:
        return PREFERENCE_LOSSES[name](replace(logprobs, policy=values), config(name)).losses

    assert torch.autograd.gradcheck(losses, policy)
    losses(policy).sum().backward()
    assert policy.grad is not None
    assert (policy.grad[logprobs.desirable] < 0).all()
    assert (policy.grad[~logprobs.desirable] > 0).all()


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_extreme_logprobs_give_a_finite_gradient(name: str) -> None:
    policy = torch.tensor([[0.0, -3e4], [-3e4, 0.0]], requires_grad=True)
    logprobs = replace(pairs([[0, 0], [0, 0]]), reference=torch.zeros(2, 2), reference_point=torch.zeros(()))
    if name not in OF_PAIRS:
        logprobs = replace(logprobs, desirable=torch.tensor([[True], [False]]))
    width = len(logprobs.desirable[0])
    scores = policy[:, :width]
    logprobs = replace(logprobs, policy=scores, reference=torch.zeros_like(scores), num_tokens=torch.ones(2, width))
    judged = PREFERENCE_LOSSES[name](logprobs, config(name))
    judged.losses.sum().backward()
    assert torch.isfinite(judged.losses).all()
    assert policy.grad is not None and torch.isfinite(policy.grad).all()


@pytest.mark.parametrize("name", OF_PAIRS)
def test_the_implicit_rewards_lead_where_the_chosen_completion_gained(name: str) -> None:
    logprobs = pairs([[-1, -4], [-4, -1]], None if name in ("simpo", "orpo") else [[-2, -2], [-2, -2]], [[2, 2]] * 2)
    rewards = PREFERENCE_LOSSES[name](logprobs, config(name)).rewards
    assert (rewards[:, 0] > rewards[:, 1]).tolist() == [True, False]


def test_every_algorithm_has_a_loss() -> None:
    assert PREFERENCE_ALGORITHMS.keys() == PREFERENCE_LOSSES.keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "dppo"}, "algorithm 'dppo' does not exist; choose one of dpo, cdpo"),
        ({"label_smoothing": 0.2}, "no effect with algorithm dpo; remove it, or use cdpo or robust_dpo"),
        ({"algorithm": "orpo", "beta": 0.1}, r"beta 0\.1 has no effect with algorithm orpo"),
        ({"algorithm": "kto", "nll_weight": 1.0}, "nll_weight 1.0 has no effect with algorithm kto"),
        ({"algorithm": "ipo", "target_margin": 0.5}, "use simpo"),
        ({"algorithm": "cdpo", "label_smoothing": 0.5}, "less than 0.5"),
        ({"beta": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PreferenceConfig.model_validate(settings)


def test_beta_has_the_algorithms_own_default() -> None:
    assert [config(name).scale for name in ("dpo", "simpo", "orpo")] == [0.1, 2.0, 1.0]
