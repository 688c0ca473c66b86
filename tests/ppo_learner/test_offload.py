"""What lies in the machine's memory is trained as if it lay on the device."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ppo_learner.config import LearnerConfig
from tests.ppo_learner.builders import moved_out, random_groups, same_update, start_rank, weights_of

SETTINGS = {"lr": 1e-3, "critic_lr": 1e-3, "kl_coefficient": 0.1, "max_tokens_per_micro_batch": 64}
PARTS: dict[str, set[str]] = {
    "none": set(),
    "optimizer": {"optimizer"},
    "parameters_and_optimizer": {"optimizer", "parameters"},
}
"""What each `offload` moves out."""


@pytest.mark.parametrize(
    ("zero_stage", "offload", "dtype"),
    [
        (1, "optimizer", "float32"),
        (2, "optimizer", "float32"),
        (3, "optimizer", "bfloat16"),
        (3, "parameters_and_optimizer", "float32"),
    ],
)
def test_offload_changes_neither_report_nor_weights_nor_resume(
    zero_stage: int, offload: str, dtype: Any, tiny_model: Path, tmp_path: Path
) -> None:
    outcomes = []
    for where in ("none", offload):
        config = LearnerConfig.model_validate(SETTINGS | {"zero_stage": zero_stage, "offload": where})
        rank = start_rank(config, tiny_model, dtype=dtype)
        assert moved_out(rank) == {"policy": PARTS[where], "critic": PARTS[where]}
        start = weights_of(rank)
        reports = [rank.step(random_groups(0))]
        rank.save(tmp_path / where)
        reports.append(rank.step(random_groups(1)))
        outcomes.append((reports[1].metrics, weights_of(rank)))
        rank.close()
    resumed = start_rank(config, tiny_model, dtype=dtype)
    resumed.load(tmp_path / "none")
    after = resumed.step(random_groups(1)).metrics
    resumed.close()
    (metrics, weights), (moved_metrics, moved_weights) = outcomes
    assert same_update(start, weights, moved_weights)
    tolerance = 1e-4 if dtype == "float32" else 2e-2
    for name in ("policy_loss", "value_loss", "entropy", "gradient_norm/policy", "gradient_norm/critic"):
        assert moved_metrics[name] == pytest.approx(metrics[name], rel=tolerance, abs=1e-5), name
        assert after[name] == pytest.approx(metrics[name], rel=tolerance, abs=1e-5), name


@pytest.mark.parametrize(("zero_stage", "offload"), [(0, "optimizer"), (2, "parameters_and_optimizer")])
def test_what_is_not_sharded_cannot_be_moved_out(zero_stage: int, offload: str) -> None:
    with pytest.raises(ValidationError, match="set zero_stage: "):
        LearnerConfig.model_validate({"zero_stage": zero_stage, "offload": offload})


@pytest.mark.parametrize("optimizer", ["muon", "adamw_8bit"])
def test_an_optimizer_that_does_not_step_in_the_machines_memory_is_refused(optimizer: str) -> None:
    with pytest.raises(ValidationError, match=f"{optimizer} does not run"):
        LearnerConfig.model_validate({"zero_stage": 2, "offload": "optimizer", "optimizer": optimizer})


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # The infinite reward's own statistics.
def test_a_non_finite_step_is_skipped_with_offload_as_well(tiny_model: Path) -> None:
    config = LearnerConfig.model_validate(SETTINGS | {"zero_stage": 2, "offload": "optimizer"})
    rank = start_rank(config, tiny_model)
    start = weights_of(rank)
    first, *others = (groups := random_groups(0))[0].rewards
    broken = replace(groups[0], rewards=(replace(first, value=math.inf), *others))
    assert rank.step([broken, *groups[1:]]).metrics["updates_skipped"] == 1
    assert all(torch.equal(weight, start[name]) for name, weight in weights_of(rank).items())
    assert rank.step(random_groups(0)).metrics["updates_skipped"] == 0
    rank.close()
