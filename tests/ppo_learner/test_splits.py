"""Every loss and estimator learns the same however a step is split: into micro-batches, packed rows or ranks.

All cases go through one pair of processes, because starting those is what takes time.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ppo_learner.batching import batch_demonstrations, batch_rollouts, plan_micro_batches
from ppo_learner.config import LearnerConfig
from ppo_learner.packing_config import PackingConfig
from tests.ppo_learner.builders import (
    is_of_the_machine,
    random_groups,
    run_as_pair,
    same_update,
    start_rank,
    weights_of,
)
from tests.ppo_learner.split_cases import CASES, outcome, write_models
from tests.ppo_learner.test_learner import with_infinite_reward

SMALL = {"max_tokens_per_micro_batch": 40}
"""A budget that splits every step."""
PACKABLE = [
    name for name, case in CASES.items() if issubclass(case.config, PackingConfig) and "teacher" not in case.settings
]
"""Cases whose sequences may share a row; a teacher reads them side by side."""
POISONED = {
    f"{poison}_{dtype}_zero_{stage}": (poison, dtype, stage)
    for poison in ("nothing", "completion", "weight")
    for dtype, stage in (*(("float32", stage) for stage in range(4)), *(("bfloat16", stage) for stage in (1, 2, 3)))
}
"""What is not finite in a step: a completion, which one rank has, or one number in the gradient of rank 1."""


def outcome_after_poison(name: str, model: Path, **place: int) -> dict[str, Any]:
    """Plain REINFORCE, whose tokens share nothing: a step that is not finite on one rank, and one that is."""
    poison, dtype, stage = POISONED[name]
    config = LearnerConfig.model_validate({"algorithm": "reinforce", "lr": 1e-2, "zero_stage": stage})
    rank = start_rank(config, model, dtype=dtype, **place)
    start, groups, skipped = weights_of(rank), random_groups(0), {}
    if poison != "nothing":
        weight = next(rank._networks.policy.module.parameters())
        hook = weight.register_hook(with_nan if poison == "weight" and place["rank"] == 1 else torch.clone)
        skipped = rank.step(with_infinite_reward(groups) if poison == "completion" else groups).metrics
        hook.remove()
    between = weights_of(rank)
    rank.step(groups)
    end = weights_of(rank)
    rank.close()
    return {"start": start, "between": between, "end": end, "skipped": skipped}


def with_nan(gradient: torch.Tensor) -> torch.Tensor:
    gradient = gradient.clone()
    gradient.view(-1)[0] = torch.nan
    return gradient


def train_as_one_of_two(rank: int, meet: Callable[[], int], model: Path, folder: Path) -> None:
    place = {"rank": rank, "world_size": 2}
    outcomes = {name: outcome(name, model, port=meet(), **place) for name in CASES}
    outcomes |= {name: outcome_after_poison(name, model, port=meet(), **place) for name in POISONED}
    torch.save(outcomes, folder / f"{rank}.pt")


def assert_same(found: dict[str, Any], whole: dict[str, Any]) -> None:
    for step, expected in zip(found["metrics"], whole["metrics"], strict=True):
        assert step.keys() == expected.keys()
        for name in {name for name in expected if not is_of_the_machine(name)}:
            assert step[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5, nan_ok=True), name
    assert same_update(whole["start"], whole["end"], found["end"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("split"))


@pytest.fixture(scope="module")
def wholes(model: Path) -> dict[str, dict[str, Any]]:
    """What one rank makes of each case when nothing is split."""
    return {name: outcome(name, model) for name in CASES}


@pytest.fixture(scope="module")
def pair(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """For each of two ranks what it makes of each case."""
    folder = tmp_path_factory.mktemp("pair")
    run_as_pair(train_as_one_of_two, model, folder, deadline_s=200)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_ranks_have_unequal_loads() -> None:
    batches = [batch_rollouts(step) for step in CASES["ppo"].steps]
    for batch in (*batches, batch_demonstrations(CASES["demonstrations"].steps[0])):
        first, second = plan_micro_batches(batch.lengths, max_tokens=4096, num_ranks=2)
        sequences = [[number for part in parts for number in part] for parts in (first, second)]
        tokens = [int(batch.counts[own].sum()) for own in sequences]
        assert len(sequences[0]) != len(sequences[1]) and max(tokens) >= 1.2 * min(tokens)


@pytest.mark.parametrize("name", CASES)
def test_micro_batches_change_nothing(name: str, wholes: dict[str, Any], model: Path) -> None:
    assert_same(outcome(name, model, SMALL), wholes[name])


@pytest.mark.parametrize("name", PACKABLE)
def test_rows_that_are_packed_change_nothing(name: str, wholes: dict[str, Any], model: Path) -> None:
    assert_same(outcome(name, model, SMALL | {"packing": "on"}), wholes[name])


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_change_nothing(name: str, wholes: dict[str, Any], pair: list[dict[str, Any]]) -> None:
    for rank in pair:
        assert_same(rank[name], wholes[name])


@pytest.mark.parametrize("name", [name for name in POISONED if not name.startswith("nothing")])
def test_both_ranks_skip_what_is_not_finite_on_one_as_if_it_had_not_been(name: str, pair: list[dict[str, Any]]) -> None:
    _, _, rest = name.partition("_")
    for outcomes in pair:
        found, clean = outcomes[name], outcomes[f"nothing_{rest}"]
        assert found["skipped"]["updates_skipped"] == 1
        assert not math.isfinite(found["skipped"]["gradient_norm/policy"])
        for key, weight in clean["end"].items():
            assert torch.equal(found["between"][key], clean["start"][key])
            assert torch.equal(found["end"][key], weight) and not torch.equal(weight, clean["start"][key])
