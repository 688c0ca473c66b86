"""The scale of the critic: moments in parts are those of the whole, and what the learner makes of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ppo_learner.batching import batch_rollouts
from ppo_learner.config import LearnerConfig
from ppo_learner.experience import Evaluation, make_experience
from ppo_learner.return_moments import ReturnMoments
from tests.ppo_learner import numpy_reference
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


@pytest.mark.parametrize("seed", range(3))
def test_moments_and_rescaling_agree_with_numpy(seed: int) -> None:
    torch.manual_seed(seed)
    first, second = 3 + torch.randn(2, 20, dtype=torch.float64) * torch.tensor([[1.0], [4.0]])
    before = ReturnMoments().merged(first)
    after = before.merged(second)
    scales = [numpy_reference.running_moments(returns.numpy()) for returns in (first, torch.cat([first, second]))]
    for moments, scale in zip((before, after), scales, strict=True):
        assert (moments.mean, moments.deviation) == pytest.approx(scale, rel=1e-10)
    features, weight, bias = torch.randn(5, 3).double().numpy(), np.array([0.5, -1.0, 2.0]), 0.3
    new_weight, new_bias = numpy_reference.rescaled_layer(weight, bias, *scales)
    factor, shift = before.rescaling(after)
    np.testing.assert_allclose(factor * (features @ weight + bias) + shift, features @ new_weight + new_bias)
    returns = features @ weight * scales[0][1] + scales[0][0]
    np.testing.assert_allclose(before.restore(torch.from_numpy(features @ weight)).numpy(), returns)
    normalised = (returns - scales[1][0]) / scales[1][1]
    np.testing.assert_allclose(after.normalise(torch.from_numpy(returns)).numpy(), normalised)


def test_returns_that_are_all_the_same_leave_the_scale_at_one() -> None:
    assert ReturnMoments().deviation == ReturnMoments().merged(torch.tensor([4.0, 4.0])).deviation == 1.0


def test_returns_that_are_not_finite_leave_the_moments_alone() -> None:
    moments = ReturnMoments(count=2, mean=1.0, squares=2.0)
    assert moments.merged(torch.tensor([3.0, torch.inf])) == moments


def test_rescaling_worked_by_hand() -> None:
    # ½ on a scale of mean 20 and deviation 10 is a return of 25, which is 3 on one of mean 10 and deviation 5.
    before, after = ReturnMoments(count=4, mean=20.0, squares=400.0), ReturnMoments(count=4, mean=10.0, squares=100.0)
    factor, shift = before.rescaling(after)
    assert (factor, shift) == (2.0, 2.0)
    assert factor * 0.5 + shift == after.normalise(before.restore(torch.tensor(0.5))).item() == 3.0


@pytest.mark.parametrize("critic", ["model", "value_head"])
@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_the_last_layer_says_the_same_on_another_scale(critic: str, zero_stage: int, tiny_model: Path) -> None:
    settings = {"critic": critic, "zero_stage": zero_stage, "normalise_returns": True, "critic_lr": 1e-2}
    rank = start_rank(LearnerConfig.model_validate(settings), tiny_model)
    groups = random_groups(0)
    rank.step(groups)
    networks, batch = rank._networks, batch_rollouts(groups)
    before = networks.evaluate(batch, logprobs=False).values
    networks.rescale_values(3.0, -0.5)
    after = networks.evaluate(batch, logprobs=False).values
    rank.close()
    assert before is not None and after is not None and before.std() > 1e-3
    torch.testing.assert_close(after, 3 * before - 0.5, rtol=1e-4, atol=1e-5)


def test_what_the_critic_predicts_does_not_change_with_the_scale(tiny_model: Path) -> None:
    # A critic that hardly learns: it says the mean of the first step's returns, whatever returns come after those.
    settings = LearnerConfig(normalise_returns=True, critic_lr=1e-12, gae_lambda=1.0)
    rank = start_rank(settings, tiny_model)
    first = rank.step(random_groups(0)).metrics
    others = [
        replace(scored, rewards=tuple(replace(reward, value=100 + 50 * reward.value) for reward in scored.rewards))
        for scored in random_groups(1)
    ]
    second, third = rank.step(others).metrics, rank.step(random_groups(0)).metrics
    rank.close()
    assert abs(second["return/mean"]) > 10 * abs(first["return/mean"])
    for later in (second, third):
        assert later["value/mean"] == pytest.approx(first["return/mean"], rel=1e-3)


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
    after = before.merged(made.returns)
    torch.testing.assert_close(made.old_values, after.normalise(made.values))
    assert made.return_moments == after and after.count == 6
    torch.testing.assert_close(made.targets, after.normalise(made.returns))


def test_the_first_old_values_are_what_the_untrained_critic_said() -> None:
    groups = [make_group([[0, 1]] * 4, [2.0, 3.0, 4.0, 5.0])]
    made = make_experience(
        groups,
        batch_rollouts(groups),
        Evaluation(values=torch.zeros(4)),
        LearnerConfig(normalise_returns=True, whiten_advantages=False),
        version=0,
        kl_coefficient=0.0,
        return_moments=ReturnMoments(),
    )
    assert made.old_values is not None and made.targets is not None
    assert made.old_values.tolist() == [0.0] * 4
    # Mean 3.5, deviation √1.25: the targets lie on both sides, so no clip holds the critic back from its first step.
    torch.testing.assert_close(made.targets, torch.tensor([-1.5, -0.5, 0.5, 1.5]) / 1.25**0.5)


def test_nothing_clips_the_first_step_of_a_critic_on_its_own_scale(tiny_model: Path) -> None:
    rank = start_rank(LearnerConfig(normalise_returns=True), tiny_model)
    first = rank.step(random_groups(0)).metrics
    rank.close()
    assert first["value_clip_fraction"] == 0.0


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
