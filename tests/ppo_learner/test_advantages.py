"""Advantages against hand-worked numbers and a second implementation in NumPy loops."""

import numpy as np
import pytest
import torch

from ppo_learner.advantages import (
    ADVANTAGES,
    Episodes,
    generalised_advantages,
    group_normalised_advantages,
    leave_one_out_advantages,
    whiten,
)
from ppo_learner.algorithms import ALGORITHMS
from ppo_learner.config import LearnerConfig
from ppo_learner.step_rewards import StepRewards
from services.contracts.errors import UserError
from tests.ppo_learner import numpy_reference

GROUPS = torch.tensor([0, 0, 1, 1, 1])


def test_gae_of_two_tokens_worked_by_hand() -> None:
    # δ_1 = 1 − 0.25 = 0.75; δ_0 = 0 + 0.9·0.25 − 0.5 = −0.275; A_0 = −0.275 + 0.9·0.5·0.75 = 0.0625
    advantages = generalised_advantages(
        torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25]]), gamma=0.9, gae_lambda=0.5
    )
    torch.testing.assert_close(advantages, torch.tensor([[0.0625, 0.75]]))


def test_gae_with_lambda_one_is_the_return_less_the_value() -> None:
    rewards, values = torch.rand(3, 7), torch.rand(3, 7)
    advantages = generalised_advantages(rewards, values, gamma=1.0, gae_lambda=1.0)
    returns = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(advantages, returns - values)


def test_gae_of_a_short_row_does_not_see_its_padding() -> None:
    long, short = torch.rand(1, 6, dtype=torch.float64), torch.rand(1, 6, dtype=torch.float64)
    rewards = torch.nn.functional.pad(long[:, :4], (0, 2))
    values = torch.nn.functional.pad(short[:, :4], (0, 2))
    padded = generalised_advantages(rewards, values, gamma=0.99, gae_lambda=0.95)
    alone = generalised_advantages(rewards[:, :4], values[:, :4], gamma=0.99, gae_lambda=0.95)
    torch.testing.assert_close(padded[:, :4], alone)
    assert not padded[:, 4:].any()


def test_gae_agrees_with_the_written_out_sums() -> None:
    rewards, values = torch.randn(2, 4, 9, dtype=torch.float64)
    found = generalised_advantages(rewards, values, gamma=0.97, gae_lambda=0.9)
    expected = [numpy_reference.gae(r, v, 0.97, 0.9) for r, v in zip(rewards.numpy(), values.numpy(), strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_grpo_of_a_pair_is_plus_and_minus_one_over_root_two() -> None:
    # mean 0.5, sample deviation √0.5: ±0.5/√0.5
    advantages = group_normalised_advantages(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]))
    torch.testing.assert_close(advantages, torch.tensor([0.5**0.5, -(0.5**0.5)]), rtol=1e-5, atol=1e-5)


def test_grpo_without_division_leaves_the_centred_scores() -> None:
    advantages = group_normalised_advantages(torch.tensor([3.0, 1.0]), torch.tensor([0, 0]), divide_by_std=False)
    torch.testing.assert_close(advantages, torch.tensor([1.0, -1.0]))


def test_grpo_of_equal_scores_is_zero() -> None:
    advantages = group_normalised_advantages(torch.full((8,), 0.1, dtype=torch.float64), torch.zeros(8).long())
    torch.testing.assert_close(advantages, torch.zeros(8, dtype=torch.float64))


def test_rloo_subtracts_the_mean_of_the_others() -> None:
    # 1 − mean(0, 2) = 0; 0 − mean(1, 2) = −1.5; 2 − mean(1, 0) = 1.5
    advantages = leave_one_out_advantages(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0, 0, 0]))
    torch.testing.assert_close(advantages, torch.tensor([0.0, -1.5, 1.5]))


def test_groups_of_unequal_size_agree_with_numpy() -> None:
    scores = torch.randn(5, dtype=torch.float64)
    parts = [scores[:2].numpy(), scores[2:].numpy()]
    grpo = np.concatenate([numpy_reference.group_normalised(part) for part in parts])
    rloo = np.concatenate([numpy_reference.leave_one_out(part) for part in parts])
    np.testing.assert_allclose(group_normalised_advantages(scores, GROUPS).numpy(), grpo, rtol=1e-9)
    np.testing.assert_allclose(leave_one_out_advantages(scores, GROUPS).numpy(), rloo, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("advantages", [group_normalised_advantages, leave_one_out_advantages])
def test_a_group_of_one_is_refused_with_the_setting_to_change(advantages) -> None:
    with pytest.raises(UserError, match="samples_per_prompt"):
        advantages(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 0, 1]))


def test_whitening_looks_at_masked_tokens_only() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    values = torch.tensor([[1.0, 2.0, 99.0], [6.0, 99.0, 99.0]], dtype=torch.float64)
    found = whiten(values, mask)
    np.testing.assert_allclose(found[mask].numpy(), numpy_reference.whitened(np.array([1.0, 2.0, 6.0])), rtol=1e-9)
    assert not found[~mask].any()


@pytest.mark.parametrize("name", ADVANTAGES)
def test_every_estimator_prefers_the_better_completion_and_keeps_to_the_mask(name: str) -> None:
    mask = torch.tensor([[True, True, True], [True, True, False]])
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0]], dtype=torch.float64)
    rows, columns = rewards.nonzero(as_tuple=True)
    episodes = Episodes(
        rewards=rewards,
        mask=mask,
        groups=torch.tensor([0, 0]),
        values=torch.zeros(2, 3, dtype=torch.float64),
        totals=rewards.sum(dim=1),
        steps=StepRewards(rows=rows, columns=columns, values=rewards[rows, columns]),
    )
    advantages = ADVANTAGES[name](episodes, LearnerConfig())
    assert (advantages[0][mask[0]] > 0).all()
    assert advantages[1][0] < 0 and (advantages[1][mask[1]] <= 0).all()
    assert not advantages[~mask].any()


def test_every_algorithm_names_an_estimator_that_exists() -> None:
    assert {algorithm.advantage for algorithm in ALGORITHMS.values()} == set(ADVANTAGES)
