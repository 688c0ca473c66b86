"""Weights and optimizer state that are cut one way when they are written, and another when they are read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppo_learner.config import LearnerConfig
from ppo_learner.shards import Shard, read_shards, write_shards
from services.contracts.errors import CheckpointError
from tests.ppo_learner.builders import random_groups, start_rank, weights_of

SIZES = {"a": 7, "b": 12, "c": 1}
STEP = torch.tensor(4.0)


def cut(flat: Tensor, num_ranks: int) -> list[list[Shard]]:
    """Weights one after the other, cut into equal parts: for each rank its shards, all of one stepped tensor."""
    size = -(-len(flat) // num_ranks)
    ranks = []
    for rank in range(num_ranks):
        first, shards, position = rank * size, [], 0
        own = flat[first : first + size].clone()
        for name, numel in SIZES.items():
            begin, end = max(position, first), min(position + numel, first + size)
            if begin < end:
                weight = own[begin - first : end - first]
                place = {"begin": begin - position, "offset": begin - first}
                shards.append(Shard(name=name, numel=numel, weight=weight, stepped=own, **place))
            position += numel
        ranks.append(shards)
    return ranks


def state_of(shards: Sequence[Shard], offset: float) -> dict[Tensor, dict[str, Any]]:
    [stepped] = {id(shard.stepped): shard.stepped for shard in shards}.values()
    return {stepped: {"moment": stepped + offset, "step": STEP}}


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 5), (4, 4)])
def test_what_some_ranks_wrote_any_number_of_ranks_reads(before: int, after: int, tmp_path: Path) -> None:
    flat = torch.rand(sum(SIZES.values()))
    for rank, shards in enumerate(cut(flat, before)):
        write_shards(tmp_path, shards, state_of(shards, 100.0), rank=rank)
    for shards, expected in zip(cut(torch.zeros_like(flat), after), cut(flat, after), strict=True):
        states: dict[Tensor, dict[str, Any]] = {}
        read_shards(tmp_path, shards, states)
        for found, wanted in zip(shards, expected, strict=True):
            assert torch.equal(found.weight, wanted.weight)
            state = states[found.stepped]
            assert torch.equal(found.of(state["moment"]), wanted.weight + 100.0)
            assert torch.equal(state["step"], STEP)


def test_a_missing_file_and_another_model_are_refused_by_the_name_of_the_weight(tmp_path: Path) -> None:
    flat = torch.rand(sum(SIZES.values()))
    for rank, shards in enumerate(cut(flat, 3)):
        write_shards(tmp_path, shards, {}, rank=rank)
    [whole] = cut(flat, 1)
    (tmp_path / "rank_0.pt").rename(tmp_path / "elsewhere.pt")
    with pytest.raises(CheckpointError, match="has no weight 'a' of 7 elements"):
        read_shards(tmp_path, whole, {})
    (tmp_path / "elsewhere.pt").rename(tmp_path / "rank_0.pt")
    (tmp_path / "rank_1.pt").unlink()
    with pytest.raises(CheckpointError, match="'b' 5 elements of 12 are there"):
        read_shards(tmp_path, whole, {})


def test_state_for_blocks_comes_back_where_weights_are_cut_alike_and_is_refused_elsewhere(tmp_path: Path) -> None:
    for rank, shards in enumerate(cut(torch.rand(sum(SIZES.values())), 2)):
        states = state_of(shards, 0.0)
        states[shards[0].stepped] |= {"scales": torch.full((3,), float(rank))}
        write_shards(tmp_path, shards, states, rank=rank)
    for rank, shards in enumerate(cut(torch.zeros(sum(SIZES.values())), 2)):
        found: dict[Tensor, dict[str, Any]] = {}
        read_shards(tmp_path, shards, found)
        assert found[shards[0].stepped]["scales"].tolist() == [rank] * 3
    with pytest.raises(CheckpointError, match="'scales' for whole blocks"):
        read_shards(tmp_path, cut(torch.zeros(sum(SIZES.values())), 1)[0], {})


@pytest.mark.parametrize(("before", "after"), [(0, 2), (1, 3), (3, 1), (2, 0)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_zero_stage_goes_on_with_the_same_weights(
    before: int, after: int, dtype: Any, tiny_model: Path, tmp_path: Path
) -> None:
    metrics, weights = [], []
    for stage in (before, after):
        config = LearnerConfig(algorithm="grpo", lr=1e-3, zero_stage=stage)
        rank = start_rank(config, tiny_model, dtype=dtype)
        if stage == before:
            rank.step(random_groups(0))
            rank.save(tmp_path)
        else:
            rank.load(tmp_path)
        weights.append(weights_of(rank))
        metrics.append(rank.step(random_groups(1)).metrics)
        rank.close()
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    for name in ("policy_loss", "entropy", "gradient_norm/policy"):
        assert metrics[1][name] == pytest.approx(metrics[0][name], rel=1e-4, abs=1e-5)
