"""Columns and micro-batches: alignment, multi-turn masks, budgets, balance over ranks."""

import random

import pytest
import torch

from ppo_learner.batching import batch_rollouts, collate, plan_micro_batches, sampler_logprobs, sampler_versions
from tests.ppo_learner.builders import make_group, random_groups

CPU = torch.device("cpu")
TWO_TURNS = [0, 0, 1, 1, 0, 0, 1]


def test_the_position_before_a_token_predicts_it_and_holes_are_skipped() -> None:
    groups = [make_group([TWO_TURNS, [0, 1]], [1.0, 0.0])]
    batch = batch_rollouts(groups)
    micro_batch = collate(batch, [1, 0], CPU)
    first, second = groups[0].group.rollouts
    assert micro_batch.rows.tolist() == [0, 1, 1, 1]
    assert micro_batch.columns.tolist() == [0, 1, 2, 5]
    assert micro_batch.targets.tolist() == [second.token_ids[1], *(first.token_ids[t] for t in (2, 3, 6))]
    assert micro_batch.actions.tolist() == [3, 0, 1, 2]
    assert micro_batch.token_ids[1].tolist() == list(first.token_ids)
    assert micro_batch.token_ids[0].tolist() == [*second.token_ids, 0, 0, 0, 0, 0]


def test_sampler_logprobs_are_those_of_the_sampled_tokens() -> None:
    groups = [make_group([TWO_TURNS, [0, 1]], [1.0, 0.0])]
    first, second = groups[0].group.rollouts
    expected = [*(first.logprobs[t] for t in (2, 3, 6)), second.logprobs[1]]
    assert sampler_logprobs(groups, batch_rollouts(groups)).tolist() == expected


def test_sampler_versions_are_those_of_the_sampled_tokens() -> None:
    groups = [make_group([TWO_TURNS, [0, 1]], [1.0, 0.0])]
    first, second = groups[0].group.rollouts
    for t, version in {2: 4, 3: 5, 6: 7}.items():
        first.policy_versions[t] = version
    second.policy_versions[1] = 6
    assert sampler_versions(groups, batch_rollouts(groups)).tolist() == [4, 5, 7, 6]


def test_a_first_token_is_never_trained_because_nothing_predicts_it() -> None:
    batch = batch_rollouts([make_group([[1, 1, 1], [0, 1]], [1.0, 0.0])])
    assert [positions.tolist() for positions in batch.positions] == [[1, 2], [1]]


def test_padding_a_column_and_back_changes_nothing() -> None:
    batch = batch_rollouts(random_groups(0))
    column = torch.rand(batch.num_actions)
    padded = batch.pad(column)
    torch.testing.assert_close(batch.unpad(padded), column)
    assert not padded[~batch.mask()].any()


def test_no_sequences_make_a_micro_batch_with_nothing_to_train() -> None:
    micro_batch = collate(batch_rollouts(random_groups(0)), [], CPU)
    assert micro_batch.token_ids.shape == (1, 1)
    assert len(micro_batch.targets) == len(micro_batch.actions) == 0


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("max_tokens", [1, 100, 1000, 100_000])
def test_plans_cover_every_sequence_once_within_the_budget(num_ranks: int, max_tokens: int) -> None:
    draw = random.Random(max_tokens)
    lengths = [draw.randint(1, 300) for _ in range(50)]
    plan = plan_micro_batches(lengths, max_tokens=max_tokens, num_ranks=num_ranks)
    parts = [part for rank in plan for part in rank]
    assert sorted(i for part in parts for i in part) == list(range(50))
    assert all(len(part) * max(lengths[i] for i in part) <= max_tokens for part in parts if len(part) > 1)
    assert {len(rank) for rank in plan} == {len(plan[0])}


def test_ranks_do_about_the_same_work_at_the_same_time() -> None:
    draw = random.Random(0)
    lengths = [int(draw.lognormvariate(5, 0.8)) + 1 for _ in range(512)]
    plan = plan_micro_batches(lengths, max_tokens=4096, num_ranks=4)
    costs = torch.tensor([[len(part) * max(lengths[i] for i in part) for part in rank] for rank in plan])
    waiting = costs.max(dim=0).values.sum() * len(plan) - costs.sum()
    assert waiting / costs.sum() < 0.05
    assert costs.sum() / sum(lengths) < 1.1


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("max_tokens", [1, 100, 1000, 100_000])
def test_packed_plans_cover_every_sequence_once_within_the_budget(num_ranks: int, max_tokens: int) -> None:
    draw = random.Random(max_tokens)
    lengths = [draw.randint(1, 300) for _ in range(50)]
    plan = plan_micro_batches(lengths, max_tokens=max_tokens, num_ranks=num_ranks, packed=True)
    parts = [part for rank in plan for part in rank]
    assert sorted(i for part in parts for i in part) == list(range(50))
    assert all(sum(lengths[i] for i in part) <= max_tokens for part in parts if len(part) > 1)
    assert {len(rank) for rank in plan} == {len(plan[0])}


def test_packed_parts_are_full_and_even() -> None:
    draw = random.Random(0)
    lengths = [min(int(draw.lognormvariate(5, 0.8)) + 1, 4096) for _ in range(512)]
    plan = plan_micro_batches(lengths, max_tokens=4096, num_ranks=4, packed=True)
    tokens = torch.tensor([[sum(lengths[i] for i in part) for part in rank] for rank in plan])
    waiting = tokens.max(dim=0).values.sum() * len(plan) - tokens.sum()
    assert waiting / tokens.sum() < 0.01
    assert tokens.shape[1] == -(-sum(lengths) // (4 * 4096))


def test_more_ranks_than_sequences_leave_some_ranks_with_empty_parts() -> None:
    assert plan_micro_batches([5], max_tokens=10, num_ranks=3) == [[(0,)], [()], [()]]


def test_a_plan_is_the_same_every_time() -> None:
    lengths = [3, 3, 3, 7, 7, 1]
    plans = [plan_micro_batches(lengths, max_tokens=14, num_ranks=2) for _ in range(2)]
    assert plans[0] == plans[1]


def test_what_must_stay_together_counts_as_often_as_it_is_wide() -> None:
    lengths, widths = [9, 8, 8, 3, 2, 2], [2, 1, 4, 2, 3, 1]
    for num_ranks in (1, 2):
        plan = plan_micro_batches(lengths, widths=widths, max_tokens=32, num_ranks=num_ranks)
        parts = [part for rank in plan for part in rank]
        assert sorted(i for part in parts for i in part) == list(range(6))
        assert all(sum(widths[i] for i in part) * max(lengths[i] for i in part) <= 32 for part in parts if part)
    assert any(len(part) > 1 for part in parts)
