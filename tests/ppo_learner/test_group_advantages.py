"""Advantages within a group against hand-worked numbers and a second implementation in NumPy loops."""

import numpy as np
import pytest
import torch

from ppo_learner.group_advantages import group_normalised_advantages, leave_one_out_advantages
from services.contracts.errors import UserError
from tests.ppo_learner import numpy_reference

GROUPS = torch.tensor([0, 0, 1, 1, 1])


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
