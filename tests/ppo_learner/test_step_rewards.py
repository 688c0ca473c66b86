"""Rewards of steps to rewards and advantages of tokens: numbers worked by hand, NumPy loops, and what is refused."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppo_learner.batching import batch_rollouts
from ppo_learner.config import LearnerConfig
from ppo_learner.experience import Evaluation, Experience, make_experience
from ppo_learner.losses import ppo_clip
from ppo_learner.metrics import group_metrics
from ppo_learner.return_moments import ReturnMoments
from services.contracts.errors import UserError
from services.contracts.records import ScoredGroup
from tests.ppo_learner import numpy_reference
from tests.ppo_learner.builders import make_group, random_groups, with_steps

GRPO_PROCESS = {"algorithm": "grpo_process"}


def experience(groups: Sequence[ScoredGroup], config: dict[str, Any]) -> Experience:
    """With values of 0, so that GAE with λ = 1 is the sum of the rewards that follow."""
    batch = batch_rollouts(groups)
    of_gae = {} if "algorithm" in config else {"gae_lambda": 1.0}
    return make_experience(
        groups,
        batch,
        Evaluation(values=torch.zeros(batch.num_actions)),
        LearnerConfig.model_validate({"whiten_advantages": False} | of_gae | config),
        version=0,
        kl_coefficient=0.0,
        return_moments=ReturnMoments(),
    )


def advantages(groups: Sequence[ScoredGroup], config: dict[str, Any]) -> Tensor:
    """(B, T)"""
    made = experience(groups, config)
    return made.batch.pad(made.raw_advantages)


def pair(*, totals: tuple[float, float] = (1.0, 0.0)) -> list[ScoredGroup]:
    """Two completions of one prompt, of three and two tokens: steps 1, 0 and 0."""
    group = make_group([[0, 1, 1, 1], [0, 1, 1]], totals)
    return [with_steps(group, [[(0, 1.0), (2, 0.0)], [(1, 0.0)]])]


def test_grpo_of_steps_worked_by_hand() -> None:
    # The group's steps are 1, 0, 0: mean 1/3, sample deviation √(1/3), so r̃ = 1.1547, −0.57735, −0.57735.
    # Token 0 of the first sees both of its steps, tokens 1 and 2 the last alone.
    expected = [[0.57735, -0.57735, -0.57735], [-0.57735, -0.57735, 0.0]]
    torch.testing.assert_close(advantages(pair(), GRPO_PROCESS), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_grpo_of_steps_without_the_deviation_is_the_sum_of_centred_steps() -> None:
    found = advantages(pair(), GRPO_PROCESS | {"normalise_group_std": False})
    torch.testing.assert_close(found, torch.tensor([[1 / 3, -1 / 3, -1 / 3], [-1 / 3, -1 / 3, 0.0]]))


def test_a_total_of_weight_is_normalised_by_itself_and_added_to_every_token() -> None:
    # Totals 1 and 0 give ±1/√2.
    of_steps = advantages(pair(), GRPO_PROCESS)
    both = advantages(pair(), GRPO_PROCESS | {"step_weight": 2.0, "total_weight": 0.5})
    of_totals = torch.tensor([[0.5**0.5] * 3, [-(0.5**0.5)] * 2 + [0.0]])
    torch.testing.assert_close(both, 2.0 * of_steps + 0.5 * of_totals, rtol=1e-4, atol=1e-5)


def test_gae_sees_each_step_where_it_ends() -> None:
    groups = pair(totals=(10.0, 20.0))
    assert advantages(groups, {"step_weight": 2.0}).tolist() == [[12.0, 10.0, 10.0], [20.0, 20.0, 0.0]]
    assert advantages(groups, {"step_weight": 2.0, "total_weight": 0}).tolist() == [[2.0, 0.0, 0.0], [0.0] * 3]
    assert advantages(groups, {}).tolist() == [[10.0] * 3, [20.0, 20.0, 0.0]]


def test_a_total_that_includes_its_steps_counts_them_once() -> None:
    groups = pair(totals=(10.0, 20.0))
    found = advantages(groups, {"step_weight": 1.0, "total_includes_steps": True})
    assert found.tolist() == [[10.0, 9.0, 9.0], [20.0, 20.0, 0.0]]


def test_baselines_of_whole_completions_see_the_sum_of_the_steps() -> None:
    # 1 + 1 and 0 + 0: each less the other.
    found = advantages(pair(), {"algorithm": "rloo", "step_weight": 1.0})
    assert found.tolist() == [[2.0, 2.0, 2.0], [-2.0, -2.0, 0.0]]


def test_steps_that_end_at_one_token_add_up_and_a_tool_s_tokens_belong_to_what_was_sampled_before() -> None:
    group = make_group([[0, 1, 1, 0, 0, 1], [0, 1]], [0.0, 0.0])
    group = with_steps(group, [[(1, 1.0), (1, 2.0), (2, 4.0)], []])
    assert advantages([group], {"step_weight": 1.0})[0].tolist() == [7.0, 7.0, 4.0]
    first, *others = group.rewards[0].steps
    moved = replace(group.rewards[0], steps=(replace(first, token=4), *others))  # The tool's second token.
    group = replace(group, rewards=(moved, group.rewards[1]))
    assert advantages([group], {"step_weight": 1.0})[0].tolist() == [7.0, 7.0, 4.0]


@pytest.mark.parametrize("seed", range(5))
def test_random_groups_agree_with_numpy(seed: int) -> None:
    groups = random_groups(seed)
    expected = []
    for scored in groups:
        sampled = [[p for p, is_sampled in enumerate(r.loss_mask) if is_sampled] for r in scored.group.rollouts]
        steps = [
            [(positions.index(step.token), step.value) for step in reward.steps if step.token is not None]
            for positions, reward in zip(sampled, scored.rewards, strict=True)
        ]
        expected += numpy_reference.step_normalised(steps, [len(positions) for positions in sampled])
    found = experience(groups, GRPO_PROCESS).raw_advantages.numpy()
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-4, atol=1e-5)


def test_the_order_of_groups_and_what_stands_beside_them_changes_nothing() -> None:
    groups = random_groups(3)
    whole = advantages(groups, GRPO_PROCESS)
    offset = 0
    for scored in groups:
        size = len(scored.rewards)
        alone = advantages([scored], GRPO_PROCESS)
        torch.testing.assert_close(whole[offset : offset + size, : alone.shape[1]], alone)
        offset += size


def test_a_step_of_the_policy_makes_the_tokens_of_good_steps_likelier() -> None:
    made = experience(pair(), GRPO_PROCESS)
    logprobs = made.behaviour_logprobs.clone().requires_grad_()
    rows = torch.tensor([0, 0, 0, 1, 1])
    loss = ppo_clip(logprobs, made.behaviour_logprobs, made.advantages, rows, LearnerConfig())
    loss.losses.sum().backward()
    assert logprobs.grad is not None
    assert (-logprobs.grad).sign().tolist() == [1, -1, -1, -1, -1]


def test_a_completion_without_steps_is_neither_better_nor_worse() -> None:
    group = with_steps(make_group([[0, 1, 1], [0, 1], [0, 1]], [0.0, 1.0, 0.0]), [[(0, 1.0)], [], [(0, 0.0)]])
    found = advantages([group], GRPO_PROCESS)
    assert found[1].tolist() == [0.0, 0.0]
    assert found[0, 0] > 0 > found[2, 0]


def test_a_group_with_one_step_teaches_nothing() -> None:
    group = with_steps(make_group([[0, 1], [0, 1]], [0.0, 1.0]), [[(0, 1.0)], []])
    assert not advantages([group], GRPO_PROCESS).any()


@pytest.mark.parametrize("config", [GRPO_PROCESS, {"step_weight": 0.1}])
def test_rewards_without_steps_are_refused_where_steps_count(config: dict[str, Any]) -> None:
    groups = [make_group([[0, 1], [0, 1, 1]], [1.0, 0.0])]
    with pytest.raises(UserError, match="none of 2 completions has rewards for its steps"):
        advantages(groups, config)
    assert advantages(groups, {}).any()


def test_steps_are_measured_where_there_are_any() -> None:
    metrics = group_metrics([*pair(), make_group([[0, 1]], [0.0])])
    assert metrics["process/step_reward"] == pytest.approx(1 / 3)
    assert metrics["process/steps"] == 1.0
    assert not [name for name in group_metrics([make_group([[0, 1]], [0.0])]) if name.startswith("process/")]


def test_a_group_of_one_is_refused_with_the_setting_to_change() -> None:
    group = with_steps(make_group([[0, 1, 1]], [1.0]), [[(0, 1.0)]])
    with pytest.raises(UserError, match="samples_per_prompt"):
        advantages([group], GRPO_PROCESS)


def test_remax_subtracts_the_greedy_answer_s_reward_of_each_prompt_and_refuses_to_do_without() -> None:
    groups = [replace(make_group([[0, 1, 1], [0, 1]], [1.0, 0.0]), baseline=0.25), make_group([[0, 1]], [3.0])]
    assert advantages(groups, {"algorithm": "remax"}).tolist() == [[0.75, 0.75], [-0.25, 0.0], [0.0, 0.0]]
    with pytest.raises(UserError, match="1 of 2 groups have no reward of a greedy answer"):
        advantages([groups[0], replace(groups[1], baseline=None)], {"algorithm": "remax"})


def test_between_two_turns_there_is_one_discount_and_none_for_what_the_tool_said() -> None:
    # Turns of two tokens and of one, with three tokens of a tool between them.
    group = make_group([[0, 1, 1, 0, 0, 0, 1], [0, 1]], [1.0, 0.0])
    plain = {"algorithm": "reinforce", "gamma": 0.5}
    assert advantages([group], plain)[0].tolist() == [0.25, 0.5, 1.0]
    assert advantages([group], plain | {"turn_gamma": 0.1})[0].tolist() == pytest.approx([0.05, 0.1, 1.0])
    assert advantages([group], {"algorithm": "reinforce", "turn_gamma": 0.1})[0].tolist() == pytest.approx(
        [0.1, 0.1, 1.0]
    )


def test_gae_of_a_completion_is_the_same_with_a_tool_s_answer_in_it_and_without() -> None:
    torch.manual_seed(0)
    values = torch.randn(5)
    made = []
    for mask in ([0, 1, 1, 0, 0, 0, 1, 1], [0, 1, 1, 1, 1]):
        groups = [make_group([mask, [0, 1]], [1.0, 0.0])]
        config = LearnerConfig(gamma=0.9, gae_lambda=0.8, whiten_advantages=False)
        made.append(
            make_experience(
                groups,
                batch_rollouts(groups),
                Evaluation(values=values),
                config,
                version=0,
                kl_coefficient=0.0,
                return_moments=ReturnMoments(),
            )
        )
    with_tool, without = made
    assert torch.equal(with_tool.advantages, without.advantages)
    assert with_tool.returns is not None and without.returns is not None
    assert torch.equal(with_tool.returns, without.returns)
