"""Completions near their limit lose reward; those cut at it may be left out of the loss, but not of baselines."""

from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppo_learner.batching import batch_rollouts
from ppo_learner.config import LearnerConfig
from ppo_learner.experience import Evaluation, make_experience
from ppo_learner.overlong import learnt_completions, overlong_metrics, overlong_penalties
from ppo_learner.return_moments import ReturnMoments
from services.contracts.errors import UserError
from services.contracts.records import ScoredGroup
from services.control.config import RunConfig
from tests.ppo_learner.builders import make_group, random_groups, same_update, start_rank, weights_of

RUN: dict[str, Any] = {"model": {"path": "m"}, "data": {"prompts": "p"}, "reward": {"addresses": ["localhost:1"]}}


def truncated(scored: ScoredGroup, *indices: int) -> ScoredGroup:
    """The group with some of its completions cut at their limit."""
    rollouts = [
        replace(rollout, finish_reason="length") if index in indices else rollout
        for index, rollout in enumerate(scored.group.rollouts)
    ]
    return replace(scored, group=replace(scored.group, rollouts=tuple(rollouts)))


def advantages(
    groups: list[ScoredGroup], evaluation: Evaluation | None = None, *, kl_coefficient: float = 0.0, **settings: Any
) -> torch.Tensor:
    config = LearnerConfig.model_validate({"algorithm": "grpo", "kl_coefficient": kl_coefficient, **settings})
    experience = make_experience(
        groups,
        batch_rollouts(groups, learnt=learnt_completions(groups, config)),
        evaluation or Evaluation(),
        config,
        version=0,
        kl_coefficient=kl_coefficient,
        return_moments=ReturnMoments(),
    )
    return experience.advantages


def test_the_penalty_rises_over_the_last_tokens_before_the_limit() -> None:
    penalties = overlong_penalties(torch.tensor([1, 80, 85, 90, 100, 120]), limit=100, tokens=20)
    assert penalties.tolist() == [0.0, 0.0, 0.25, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(("limit", "tokens"), [(50, 1), (50, 17), (50, 50)])
def test_the_penalty_is_that_of_the_papers_three_cases(limit: int, tokens: int) -> None:
    lengths = np.arange(1, 60)
    cases = [lengths <= limit - tokens, lengths <= limit]
    expected = np.select(cases, [np.zeros(59), ((limit - tokens) - lengths) / tokens], default=-1.0)
    found = overlong_penalties(torch.from_numpy(lengths), limit=limit, tokens=tokens)
    np.testing.assert_allclose(-found.numpy(), expected, atol=1e-12)


def test_length_counts_in_the_advantage_and_leaves_the_reward_as_it_was() -> None:
    group = make_group([[0, 1], [0, 1, 1, 1, 1]], [1.0, 1.0])
    settings = {"overlong_tokens": 2, "overlong_limit": 4, "overlong_penalty": 0.5}
    # Rewards 1 and 1 - 0.5: mean 0.75, unbiased deviation 0.5/√2.
    expected = torch.tensor([0.25, -0.25, -0.25, -0.25, -0.25]) / (0.5 / 2**0.5)
    torch.testing.assert_close(advantages([group], **settings), expected, rtol=1e-3, atol=0)
    config = LearnerConfig.model_validate(settings)
    assert overlong_metrics([group], config) == {"completion_tokens/truncated": 0.0, "reward/overlong": -0.25}
    assert [reward.value for reward in group.rewards] == [1.0, 1.0]


def test_a_truncated_completion_counts_in_the_baseline_and_not_in_the_loss() -> None:
    group = truncated(make_group([[0, 1, 1], [0, 1], [0, 1, 1, 1]], [1.0, 0.0, 0.0]), 2)
    learnt = learnt_completions([group], LearnerConfig(mask_truncated=True))
    assert learnt.tolist() == [True, True, False]
    assert batch_rollouts([group], learnt=learnt).learnt_counts.tolist() == [2, 1, 0]
    kept = advantages([group], mask_truncated=True)
    torch.testing.assert_close(kept, advantages([group]))
    assert kept[0] > 0 > kept[2]


def test_a_truncated_completion_pays_for_its_distance_from_the_reference_as_its_group_does() -> None:
    group = truncated(make_group([[0, 1, 1]] * 4, [1.0] * 4), 3)
    evaluation = Evaluation(logprobs=torch.zeros(8), reference_logprobs=torch.full((8,), -1.0))
    # All earned the same and are as far from the reference.
    assert not advantages([group], evaluation, kl_coefficient=0.1, mask_truncated=True).any()


def test_a_truncated_solution_is_as_long_as_it_was_among_the_solutions_of_its_group() -> None:
    masks = [[0, 1, 1], [0, 1, 1], [0, 1, 1, 1], [0] + [1] * 20, [0, 1]]
    group = truncated(make_group(masks, [1.0, 1.0, 1.0, 1.0, 0.0]), 3)
    found = advantages([group], length_penalty=0.5, mask_truncated=True)
    torch.testing.assert_close(found, advantages([group], length_penalty=0.5))
    assert found[0] > found[7]  # A token of the shortest solution, and one of the longest, which was cut.


@pytest.mark.parametrize("placement", [{}, {"kl_placement": "loss", "kl_estimator": "k3"}], ids=["reward", "loss"])
def test_the_kl_that_is_steered_is_that_of_truncated_completions_too(
    placement: dict[str, str], tiny_model: Path
) -> None:
    measured = []
    for masks in (False, True):
        settings = {"algorithm": "grpo", "lr": 1e-2, "kl_coefficient": 0.1, "mask_truncated": masks, **placement}
        rank = start_rank(LearnerConfig.model_validate(settings), tiny_model)
        try:
            rank.step(random_groups(0))
            measured.append(rank.step([truncated(scored, 1) for scored in random_groups(1)]).metrics["kl/completion"])
        finally:
            rank.close()
    assert measured[0] == pytest.approx(measured[1], rel=1e-3)
    assert abs(measured[0]) > 1e-3


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "grpo"},
        {"algorithm": "grpo", "loss_aggregation": "sequence_mean", "num_minibatches": 2},
        {"algorithm": "dr_grpo", "whiten_advantages": True},
        {"algorithm": "ppo", "critic": "value_head", "normalise_returns": True},
    ],
    ids=["token_mean", "sequence_mean", "constant_length", "critic"],
)
def test_a_learner_step_is_that_without_the_masked_tokens(settings: dict[str, Any], tiny_model: Path) -> None:
    groups = [truncated(scored, 1) for scored in random_groups(0)]
    by_hand = []
    for scored in groups:
        rollouts = list(scored.group.rollouts)
        rollouts[1] = replace(rollouts[1], loss_mask=array("b", bytes(len(rollouts[1].loss_mask))))
        by_hand.append(replace(scored, group=replace(scored.group, rollouts=tuple(rollouts))))
    outcomes, reports = [], []
    for given, masks in ((groups, True), (by_hand, False), (groups, False)):
        config = LearnerConfig.model_validate({"lr": 1e-3, "mask_truncated": masks, **settings})
        rank = start_rank(config, tiny_model)
        try:
            before = weights_of(rank)
            reports.append(rank.step(given).metrics)
            outcomes.append(weights_of(rank))
        finally:
            rank.close()
        assert reports[-1]["completion_tokens/truncated"] == pytest.approx(0.25)
    assert same_update(before, outcomes[0], outcomes[1])
    assert not same_update(before, outcomes[0], outcomes[2])
    # AdamW divides by the gradient's size, which the weights therefore do not tell.
    same = ("policy_loss", "entropy", "gradient_norm/policy", "advantage/std", "value_loss", "return/std")
    found, expected = ({name: report[name] for name in same if name in report} for report in reports[:2])
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_step_of_truncated_completions_alone_is_refused() -> None:
    group = truncated(make_group([[0, 1], [0, 1]], [1.0, 0.0]), 0, 1)
    with pytest.raises(UserError, match="all 2 completions of the step were cut at their limit"):
        advantages([group], mask_truncated=True)


def test_the_limit_is_the_longest_completion_by_default() -> None:
    config = RunConfig.model_validate(
        RUN | {"rollout": {"max_completion_tokens": 30}, "learner": {"overlong_tokens": 10}}
    )
    assert config.learner.for_length(config.rollout.max_completion_tokens).overlong_limit == 30


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        ({"overlong_penalty": 2.0}, "overlong_penalty has no effect without overlong_tokens"),
        ({"overlong_tokens": 40}, "overlong_tokens 40 is more than the limit of 30 completion tokens"),
        ({"overlong_tokens": 40, "overlong_limit": 20}, "is more than the limit of 20"),
    ],
)
def test_a_range_that_does_not_fit_is_refused(learner: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(RUN | {"rollout": {"max_completion_tokens": 30}, "learner": learner})
