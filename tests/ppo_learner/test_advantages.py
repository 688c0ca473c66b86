"""Advantages against hand-worked numbers and a second implementation in NumPy loops."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppo_learner.advantages import ADVANTAGES, Episodes, generalised_advantages, returns_to_go, whiten
from ppo_learner.algorithms import ALGORITHMS
from ppo_learner.config import LearnerConfig
from ppo_learner.step_rewards import StepRewards
from tests.ppo_learner import numpy_reference


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


def test_whitening_looks_at_masked_tokens_only() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    values = torch.tensor([[1.0, 2.0, 99.0], [6.0, 99.0, 99.0]], dtype=torch.float64)
    found = whiten(values, mask)
    np.testing.assert_allclose(found[mask].numpy(), numpy_reference.whitened(np.array([1.0, 2.0, 6.0])), rtol=1e-9)
    assert not found[~mask].any()


def test_returns_to_go_worked_by_hand() -> None:
    # From the end: 4; 2 + ½·4 = 4; 1 + ½·4 = 3. After a row's last reward there is nothing to come.
    found = returns_to_go(torch.tensor([[1.0, 2.0, 4.0], [0.0, 3.0, 0.0]]), gamma=0.5)
    torch.testing.assert_close(found, torch.tensor([[3.0, 4.0, 4.0], [1.5, 3.0, 0.0]]))


def test_returns_to_go_agree_with_the_written_out_sums() -> None:
    rewards = torch.randn(4, 9, dtype=torch.float64)
    expected = [numpy_reference.returns_to_go(row, 0.9) for row in rewards.numpy()]
    np.testing.assert_allclose(returns_to_go(rewards, gamma=0.9).numpy(), expected, rtol=1e-12)


def episodes_of(rewards: Tensor, mask: Tensor, **fields: Any) -> Episodes:
    """A single group whose every reward is that of a step too."""
    rows, columns = rewards.nonzero(as_tuple=True)
    given: dict[str, Any] = {
        "rewards": rewards,
        "mask": mask,
        "groups": torch.zeros(len(mask)).long(),
        "totals": rewards.sum(dim=1),
        "solved": rewards.sum(dim=1) >= 1,
        "turn_ends": torch.zeros_like(mask),
        "values": torch.zeros_like(rewards),
        "baselines": rewards.sum(dim=1).mean().expand(len(mask)),
        "steps": StepRewards(rows=rows, columns=columns, values=rewards[rows, columns]),
    }
    return Episodes(**given | fields)


TURNS = torch.tensor([[False, True, False, True, False]])
"""Two tokens, two tokens, one token."""


def test_gae_of_two_turns_worked_by_hand() -> None:
    # A turn of two tokens, then one token; γ = λ = ½ within the turn, γ = 0.8 and λ = ¼ between the two.
    # A_2 = 3 − 1 = 2; δ_1 = 1 + 0.8·1 − 2 = −0.2, A_1 = −0.2 + 0.8·¼·2 = 0.2; δ_0 = ½·2 − 0.5 = 0.5,
    # A_0 = 0.5 + ½·½·0.2 = 0.55
    rewards, values = (torch.tensor([row], dtype=torch.float64) for row in ([0.0, 1.0, 3.0], [0.5, 2.0, 1.0]))
    ends = torch.tensor([[False, True, False]])
    episodes = episodes_of(rewards, torch.ones(1, 3).bool(), values=values, turn_ends=ends)
    config = LearnerConfig(gamma=0.5, gae_lambda=0.5, turn_gamma=0.8, turn_gae_lambda=0.25)
    assert ADVANTAGES["gae"](episodes, config)[0].tolist() == pytest.approx([0.55, 0.2, 2.0])


def test_gae_between_turns_has_a_discount_and_a_trace_of_its_own() -> None:
    rewards, values = torch.randn(2, 1, 5, dtype=torch.float64)
    episodes = episodes_of(rewards, torch.ones(1, 5).bool(), values=values, turn_ends=TURNS)
    config = LearnerConfig(gamma=1.0, gae_lambda=1.0, turn_gamma=0.9, turn_gae_lambda=0.5)
    expected = numpy_reference.gae_of_turns(
        rewards[0].numpy(), values[0].numpy(), TURNS[0].tolist(), token=(1.0, 1.0), turn=(0.9, 0.5)
    )
    np.testing.assert_allclose(ADVANTAGES["gae"](episodes, config)[0].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["gae", "monte_carlo"])
def test_without_settings_of_their_own_turns_change_nothing(name: str) -> None:
    rewards, values = torch.randn(2, 1, 5, dtype=torch.float64)
    config = LearnerConfig(gamma=0.9, gae_lambda=0.8)
    one, three = (
        episodes_of(rewards, torch.ones(1, 5).bool(), values=values, turn_ends=ends)
        for ends in (torch.zeros_like(TURNS), TURNS)
    )
    assert torch.equal(ADVANTAGES[name](one, config), ADVANTAGES[name](three, config))


def test_a_discount_per_turn_leaves_the_number_of_a_turn_s_tokens_without_effect() -> None:
    # γ = 1 within turns and ½ between them: whatever their lengths, the first of three turns sees ¼ of the reward.
    config = LearnerConfig(algorithm="reinforce", turn_gamma=0.5)
    for ends in ([0, 1, 0, 1, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 0]):
        rewards = torch.tensor([[0.0, 0.0, 0.0, 0.0, 8.0]], dtype=torch.float64)
        episodes = episodes_of(rewards, torch.ones(1, 5).bool(), turn_ends=torch.tensor([ends]).bool())
        assert ADVANTAGES["monte_carlo"](episodes, config)[0, 0] == 2.0


def test_remax_is_the_return_less_the_greedy_answer_s_reward() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    rewards = torch.tensor([[0.0, 1.0], [0.25, 0.0]], dtype=torch.float64)
    found = ADVANTAGES["greedy_baseline"](
        episodes_of(rewards, mask, baselines=torch.tensor([0.5, 0.5])), LearnerConfig(algorithm="remax")
    )
    assert found.tolist() == [[0.5, 0.5], [-0.25, 0.0]]


@pytest.mark.parametrize("name", ADVANTAGES)
def test_every_estimator_prefers_the_better_completion_and_keeps_to_the_mask(name: str) -> None:
    mask = torch.tensor([[True, True, True], [True, True, False]])
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0]], dtype=torch.float64)
    advantages = ADVANTAGES[name](episodes_of(rewards, mask), LearnerConfig())
    assert (advantages[0][mask[0]] > 0).all()
    assert advantages[1][0] < 0 and (advantages[1][mask[1]] <= 0).all()
    assert not advantages[~mask].any()


def test_every_algorithm_names_an_estimator_that_exists() -> None:
    assert {algorithm.advantage for algorithm in ALGORITHMS.values()} == set(ADVANTAGES)
