"""One rank and two, at every ZeRO stage: the same reports, weights, canary and export, and resumes that leave no trace.

The two ranks are real processes that live through all cases, because starting them is what takes time.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ppo_learner.config import LearnerConfig
from services.contracts.records import WeightedDemonstrations
from tests.ppo_learner.builders import (
    MUON_WITHIN,
    is_of_the_machine,
    moved_out,
    outcomes_of_ranks,
    random_groups,
    same_update,
    start_rank,
    weights_of,
)
from tests.ppo_learner.test_supervised import make_demonstrations

DEADLINE_S = 500
NUM_STEPS, SAVED = 3, 2
"""Of each case, and the steps before its checkpoint."""
pytestmark = pytest.mark.timeout(DEADLINE_S + 60)
"""The first test waits for all cases, which take two minutes on two cores that do nothing else."""
CRITIC = {
    "lr": 1e-3,
    "critic_lr": 1e-3,
    "kl_coefficient": 0.1,
    "kl_target": 1.0,
    "num_epochs": 2,
    "num_minibatches": 2,
    "max_tokens_per_micro_batch": 64,
}
VALUE_HEAD = CRITIC | {
    "critic": "value_head",
    "gradient_checkpointing": True,
    "ema_decay": 0.5,
    "normalise_returns": True,
}
STALE = {
    "algorithm": "grpo_process",
    "total_weight": 0.5,
    "lr": 1e-3,
    "proximal": "interpolated",
    "importance_correction": "sequence_tis",
    "num_minibatches": 2,
    "max_tokens_per_micro_batch": 64,
}
SEQUENCE_RATIO = {
    "algorithm": "gspo",
    "lr": 1e-3,
    "num_minibatches": 3,
    "kl_stop": 1e-9,  # Only the second update of a step can find that it is passed.
    "max_tokens_per_micro_batch": 64,
}
MUON = VALUE_HEAD | {"optimizer": "muon"}
EIGHT_BITS = VALUE_HEAD | {"optimizer": "adamw_8bit"}
LORA = CRITIC | {"lora": {"rank": 4}, "ema_decay": 0.5}
SHARED = {"num_ranks": 2, "sequence_parallel": 2, "max_tokens_per_micro_batch": 32}
"""What two ranks that share every sequence have beside the settings of one that has them alone."""
CASES: dict[str, dict[str, Any]] = {
    "critic": CRITIC,
    "value_head": VALUE_HEAD,
    "stale": STALE,
    "lora": LORA,
    "muon": MUON,
    "eight_bits": EIGHT_BITS,
    "stale_zero_2": STALE | {"zero_stage": 2, "packing": "on"},
    "sequence_ratio": SEQUENCE_RATIO,
    "sequence_ratio_zero_1": SEQUENCE_RATIO | {"zero_stage": 1, "packing": "on"},
    **{f"critic_zero_{stage}": CRITIC | {"zero_stage": stage} for stage in (0, 2, 3)},
    "critic_zero_3_offload": CRITIC | {"zero_stage": 3, "offload": "parameters_and_optimizer"},
    **{f"value_head_zero_{stage}": VALUE_HEAD | {"zero_stage": stage} for stage in (1, 3)},
    "muon_zero_2": MUON | {"zero_stage": 2},
    **{f"eight_bits_zero_{stage}": EIGHT_BITS | {"zero_stage": stage} for stage in (2, 3)},
    **{f"lora_zero_{stage}": LORA | {"zero_stage": stage} for stage in (0, 2, 3)},
    "stale_zero_2_shared": STALE | SHARED | {"zero_stage": 2, "packing": "on"},
    "sequence_ratio_zero_1_shared": SEQUENCE_RATIO | SHARED | {"zero_stage": 1},
    "value_head_zero_3_shared": VALUE_HEAD | SHARED | {"zero_stage": 3},
}
MIXED = ("value_head", "stale", "lora")
"""Beginnings of the names of cases that learn demonstrations beside their rollouts."""
TWO_RANKS = [name for name in CASES if "zero" in name]
RESHARDED = ["critic_zero_2", "value_head_zero_3", "lora_zero_3"]


def train_and_resume(name: str, model: Path, folder: Path, *, rank: int, world_size: int, ports: list[int]) -> None:
    """All steps in one go, and those behind a checkpoint once more; leave what came of them in `folder`."""
    place = {"rank": rank, "world_size": world_size}
    config = LearnerConfig.model_validate(CASES[name])
    learner = start_rank(config, model, port=ports[0], **place)
    start, moved = weights_of(learner), moved_out(learner)
    reports = []
    for step in range(NUM_STEPS):
        reports.append(learner.step(random_groups(step), beside(name, step)))
        if step + 1 == SAVED:
            learner.save(folder / "checkpoint")
    weights = weights_of(learner)
    publication = learner.publish(NUM_STEPS)
    assert (publication is not None) == (rank == 0)
    learner.export(folder / "export")
    learner.close()

    resumed = start_rank(config, model, port=ports[1], **place)
    resumed.load(folder / "checkpoint")
    reports_after = [resumed.step(random_groups(step), beside(name, step)) for step in range(SAVED, NUM_STEPS)]
    resumed_weights = weights_of(resumed)
    resumed.close()
    outcome = {
        "start": start,
        "moved_out": moved,
        "weights": weights,
        "resumed": resumed_weights,
        "metrics": [report.metrics for report in reports],
        "metrics_resumed": [report.metrics for report in reports_after],
        "steps": [report.step for report in (*reports, *reports_after)],
        "canary": [list(logprobs) for logprobs in publication.manifest.canary.logprobs] if publication else None,
    }
    if name in RESHARDED:
        outcome["metrics_resharded"] = finish(name, model, folder.parent / alone(name), port=ports[2], **place)
    torch.save(outcome, folder / f"outcome_{rank}.pt")


def beside(name: str, step: int) -> WeightedDemonstrations | None:
    """Five demonstrations for two or four updates, so none for a rank now and then, at a coefficient that falls."""
    if not name.startswith(MIXED):
        return None
    return WeightedDemonstrations(demonstrations=tuple(make_demonstrations(step, count=5)), coefficient=2.0 - step / 2)


def finish(name: str, model: Path, folder: Path, **place: int) -> list[dict[str, float]]:
    """Go on from another case's checkpoint."""
    learner = start_rank(LearnerConfig.model_validate(CASES[name]), model, **place)
    learner.load(folder / "checkpoint")
    reports = [learner.step(random_groups(step), beside(name, step)) for step in range(SAVED, NUM_STEPS)]
    learner.close()
    return [report.metrics for report in reports]


@pytest.fixture(scope="module")
def outcomes(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """For each case what every rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    return outcomes_of_ranks(CASES, train_and_resume, tiny_model, folder, deadline_s=DEADLINE_S) | {
        "folder": [{name: folder / name for name in CASES}]
    }


def alone(name: str) -> str:
    """The one-rank case that a two-rank case must agree with."""
    return name.split("_zero_")[0]


def has_coarse_moments(name: str) -> bool:
    """Moments of 8 bits are scaled by blocks, which lie elsewhere in a shard: two updates are alike, not the same."""
    return name.startswith("eight_bits")


def without_the_machine(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not is_of_the_machine(name)}


def comparable(name: str, metrics: dict[str, float]) -> dict[str, float]:
    """What one rank reports, too; with muon, DeepSpeed measures the gradient's norm after it was orthogonalised."""
    kept = without_the_machine(metrics)
    return {key: kept[key] for key in kept if not (name.startswith("muon") and key.startswith("gradient_norm"))}


@pytest.mark.parametrize("name", TWO_RANKS)
def test_two_ranks_train_the_weights_that_one_does(name: str, outcomes: dict[str, list[dict[str, Any]]]) -> None:
    expected = outcomes[alone(name)][0]
    for rank in outcomes[name]:
        within = 2e-2 if has_coarse_moments(name) else MUON_WITHIN if name.startswith("muon") else 1e-5
        assert same_update(expected["start"], expected["weights"], rank["weights"], within=within)


@pytest.mark.parametrize("name", TWO_RANKS)
def test_two_ranks_report_what_one_does_and_agree_to_the_bit(
    name: str, outcomes: dict[str, list[dict[str, Any]]]
) -> None:
    first, second = outcomes[name]
    for here, there, expected in zip(
        first["metrics"], second["metrics"], outcomes[alone(name)][0]["metrics"], strict=True
    ):
        assert without_the_machine(here) == without_the_machine(there)
        if not has_coarse_moments(name):
            assert comparable(name, here) == pytest.approx(comparable(name, expected), rel=5e-3, abs=2e-4)


@pytest.mark.parametrize(
    ("name", "parts"), [("critic_zero_3_offload", {"optimizer", "parameters"}), ("critic_zero_3", set())]
)
def test_two_ranks_move_out_what_they_are_told_to(
    name: str, parts: set[str], outcomes: dict[str, list[dict[str, Any]]]
) -> None:
    for rank in outcomes[name]:
        assert rank["moved_out"] == {"policy": parts, "critic": parts}


def test_two_ranks_stop_at_the_same_update(outcomes: dict[str, list[dict[str, Any]]]) -> None:
    for rank in (*outcomes["sequence_ratio"], *outcomes["sequence_ratio_zero_1"]):
        assert [(step["updates"], step["updates_left_out"]) for step in rank["metrics"]] == [(2, 1)] * NUM_STEPS


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_is_the_same_to_the_bit(name: str, outcomes: dict[str, list[dict[str, Any]]]) -> None:
    for rank in outcomes[name]:
        assert rank["weights"].keys() == rank["resumed"].keys()
        assert all(torch.equal(weight, rank["resumed"][key]) for key, weight in rank["weights"].items())
        assert rank["steps"] == [1, 2, 3, 3]
        for straight, resumed in zip(rank["metrics"][SAVED:], rank["metrics_resumed"], strict=True):
            assert without_the_machine(straight) == without_the_machine(resumed)


@pytest.mark.parametrize("name", CASES)
def test_the_export_is_the_whole_model_however_it_was_sharded(
    name: str, outcomes: dict[str, list[dict[str, Any]]]
) -> None:
    exported = AutoModelForCausalLM.from_pretrained(outcomes["folder"][0][name] / "export")
    for key, weight in exported.named_parameters():
        assert torch.equal(weight, outcomes[name][0]["weights"][f"policy.language_model.{key}"])


@pytest.mark.parametrize("name", [name for name in TWO_RANKS if not has_coarse_moments(name)])
def test_the_canary_is_the_one_of_a_single_rank(name: str, outcomes: dict[str, list[dict[str, Any]]]) -> None:
    for found, expected in zip(outcomes[name][0]["canary"], outcomes[alone(name)][0]["canary"], strict=True):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", RESHARDED)
def test_two_ranks_go_on_where_one_was(name: str, outcomes: dict[str, list[dict[str, Any]]]) -> None:
    expected = outcomes[alone(name)][0]["metrics"][SAVED:]
    for rank in outcomes[name]:
        for found, straight in zip(rank["metrics_resharded"], expected, strict=True):
            assert losses(found) == pytest.approx(losses(straight), rel=0, abs=1e-5)


@pytest.mark.parametrize("name", RESHARDED)
def test_one_rank_goes_on_where_two_were(
    name: str, tiny_model: Path, outcomes: dict[str, list[dict[str, Any]]]
) -> None:
    resharded = finish(alone(name), tiny_model, outcomes["folder"][0][name])
    for found, straight in zip(resharded, outcomes[name][0]["metrics"][SAVED:], strict=True):
        assert losses(found) == pytest.approx(losses(straight), rel=0, abs=1e-5)


def losses(metrics: dict[str, float]) -> dict[str, float]:
    return {name: metrics[name] for name in ("policy_loss", "value_loss", "entropy", "kl_coefficient")}
