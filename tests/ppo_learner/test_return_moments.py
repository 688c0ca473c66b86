"""The scale of the critic: moments in parts are those of the whole, and what the learner makes of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ppo_learner.batching import batch_rollouts
from ppo_learner.config import LearnerConfig
from ppo_learner.experience import Evaluation, make_experience
from ppo_learner.return_moments import ReturnMoments
from tests.ppo_learner.builders import make_group, random_groups, start_rank


def test_moments_worked_by_hand() -> None:
    # 1, 3 and then 5: mean 3, deviation √(8/3).
    moments = ReturnMoments().merged(torch.tensor([1.0, 3.0])).merged(torch.tensor([5.0]))
    assert (moments.count, moments.mean, moments.squares) == (3, 3.0, 8.0)
    assert moments.normalise(torch.tensor([3.0])).item() == 0.0
    assert moments.restore(torch.tensor([1.0])).item() == pytest.approx(3 + (8 / 3) ** 0.5)


def test_moments_of_parts_are_those_of_the_whole() -> None:
    torch.manual_seed(0)
    returns = 100 + torch.randn(50, dtype=torch.float64)
    moments = ReturnMoments()
    for part in torch.split(returns, [7, 0, 30, 13]):
        moments = moments.merged(part)
    assert moments.mean == pytest.approx(float(returns.mean()), rel=1e-12)
    assert moments.deviation == pytest.approx(float(returns.std(correction=0)), rel=1e-10)


def test_returns_that_are_all_the_same_leave_the_scale_at_one() -> None:
    assert ReturnMoments().deviation == ReturnMoments().merged(torch.tensor([4.0, 4.0])).deviation == 1.0


def test_the_critic_s_numbers_become_rewards_before_advantages_and_its_targets_are_on_its_own_scale() -> None:
    groups = [make_group([[0, 1], [0, 1]], [10.0, 30.0])]
    before = ReturnMoments(count=4, mean=20.0, squares=400.0)  # deviation 10
    made = make_experience(
        groups,
        batch_rollouts(groups),
        Evaluation(values=torch.tensor([-1.0, 0.5])),
        LearnerConfig(normalise_returns=True, gae_lambda=1.0, whiten_advantages=False),
        version=0,
        kl_coefficient=0.0,
        return_moments=before,
    )
    assert made.values is not None and made.old_values is not None
    assert made.returns is not None and made.targets is not None
    assert made.values.tolist() == [10.0, 25.0]
    assert made.advantages.tolist() == [0.0, 5.0]
    assert made.returns.tolist() == [10.0, 30.0]
    assert made.old_values.tolist() == [-1.0, 0.5]
    after = before.merged(made.returns)
    assert made.return_moments == after and after.count == 6
    torch.testing.assert_close(made.targets, after.normalise(made.returns))


def test_the_loss_of_values_is_on_one_scale_whatever_that_of_the_rewards_is(tiny_model: Path) -> None:
    reports = []
    for scale in (1.0, 1000.0):
        groups = [
            replace(scored, rewards=tuple(replace(reward, value=scale * reward.value) for reward in scored.rewards))
            for scored in random_groups(0)
        ]
        rank = start_rank(LearnerConfig(normalise_returns=True, lr=1e-3, critic_lr=1e-3), tiny_model)
        reports.append([rank.step(groups).metrics for _ in range(3)])
        rank.close()
    for some, others in zip(*reports, strict=True):
        assert others["value_loss"] == pytest.approx(some["value_loss"], rel=0.2)
        assert others["return/mean"] == pytest.approx(1000 * some["return/mean"], rel=0.2)
