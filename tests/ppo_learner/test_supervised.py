"""Supervised training of a policy on one rank."""

import math
import random
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ppo_learner.demonstrations import DemonstrationTask
from ppo_learner.supervised import SupervisedRank
from ppo_learner.supervised_config import SupervisedConfig
from services.contracts.errors import NonFiniteStep, UserError
from services.contracts.records import Demonstration
from tests.ppo_learner.builders import VOCABULARY, same_update
from tests.ppo_learner.supervised_ranks import start_supervised


def make_demonstrations(seed: int, count: int = 12) -> list[Demonstration]:
    """Prompts of 3 random tokens with responses of 1 to 12; only responses are to be learnt."""
    draw = random.Random(seed)
    lengths = [draw.randint(1, 12) for _ in range(count)]
    return [
        Demonstration(
            token_ids=array("i", (draw.randrange(2, VOCABULARY) for _ in range(3 + length))),
            loss_mask=array("b", [0] * 3 + [1] * length),
        )
        for length in lengths
    ]


def start(model: Path, **settings: Any) -> SupervisedRank:
    return start_supervised(DemonstrationTask, model, SupervisedConfig.model_validate({"lr": 1e-2} | settings))


def test_the_loss_is_the_cross_entropy_of_response_tokens_over_all_of_them(tiny_model: Path) -> None:
    demonstrations = make_demonstrations(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    total, count = 0.0, 0
    for demonstration in demonstrations:
        ids = torch.tensor(demonstration.token_ids)
        labels = torch.where(torch.tensor(demonstration.loss_mask).bool(), ids, -100)
        num_learnt = sum(demonstration.loss_mask)
        total += float(model(ids[None], labels=labels[None]).loss.detach()) * num_learnt
        count += num_learnt
    for budget in (16, 10_000):
        rank = start(tiny_model, max_tokens_per_micro_batch=budget)
        assert rank.evaluate(demonstrations)["loss"] == pytest.approx(total / count, rel=1e-5)
        assert rank.step(demonstrations).metrics["loss"] == pytest.approx(total / count, rel=1e-5)
        rank.close()


def test_demonstrations_are_learnt_and_the_export_has_learnt_them(tiny_model: Path, tmp_path: Path) -> None:
    demonstrations = make_demonstrations(1)
    rank = start(tiny_model, lr=3e-3)
    losses = [rank.step(demonstrations).metrics["loss"] for _ in range(8)]
    rank.export(tmp_path)
    final = rank.evaluate(demonstrations)["loss"]
    rank.close()
    assert final < losses[-1] < losses[0] / 2
    again = start(tmp_path)
    assert again.evaluate(demonstrations)["loss"] == pytest.approx(final, rel=1e-5)
    again.close()


def test_a_step_tells_of_each_kind_of_module_and_of_memory(tiny_model: Path) -> None:
    rank = start(tiny_model)
    metrics = rank.step(make_demonstrations(0)).metrics
    rank.close()
    kinds = {name: norm for name, norm in metrics.items() if name.startswith("gradient_norm/policy/")}
    assert {"attention", "mlp", "embedding", "norm"} <= {name.rpartition("/")[2] for name in kinds}
    assert math.hypot(*kinds.values()) == pytest.approx(metrics["gradient_norm/policy"], rel=1e-4)
    assert metrics["learner/memory_bytes"] > 1e6


def test_demonstrations_in_one_row_teach_what_they_teach_side_by_side(tiny_model: Path) -> None:
    outcomes = []
    for packing in ("off", "on"):
        rank = start(tiny_model, packing=packing, max_tokens_per_micro_batch=40)
        begin = {name: weight.clone() for name, weight in rank._network.full_parameters()}
        work = rank._task.work(make_demonstrations(0))
        parts = work.plan(max_tokens=40, num_ranks=1)[0]
        losses = [rank.step(make_demonstrations(step)).metrics["loss"] for step in range(3)]
        weights = {name: weight.clone() for name, weight in rank._network.full_parameters()}
        rank.close()
        outcomes.append((losses, weights, len(parts)))
    (apart, weights, num_padded), (together, packed_weights, num_packed) = outcomes
    assert num_packed < num_padded
    assert together == pytest.approx(apart, rel=1e-5)
    assert same_update(begin, weights, packed_weights)


def test_evaluating_changes_nothing(tiny_model: Path) -> None:
    rank = start(tiny_model)
    losses = [rank.evaluate(make_demonstrations(2)) for _ in range(2)]
    rank.close()
    assert losses[0] == losses[1]


def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(tiny_model: Path, tmp_path: Path) -> None:
    rank = start(tiny_model, lr_schedule="linear")
    reports = []
    for step in range(4):
        reports.append(rank.step(make_demonstrations(step)))
        if step == 1:
            rank.save(tmp_path)
    rank.close()
    resumed = start(tiny_model, lr_schedule="linear")
    resumed.load(tmp_path)
    again = [resumed.step(make_demonstrations(step)) for step in (2, 3)]
    resumed.close()
    for straight, after in zip(reports[2:], again, strict=True):
        assert straight.step == after.step
        for name in ("loss", "learning_rate", "gradient_norm/policy"):
            assert straight.metrics[name] == after.metrics[name]


def test_a_rate_that_blows_up_stops_the_run(tiny_model: Path) -> None:
    rank = start(tiny_model, lr=1e30, max_nonfinite_steps=2)
    with pytest.raises(NonFiniteStep, match="2 updates in a row"):
        for step in range(5):
            assert math.isfinite(rank.step(make_demonstrations(step)).metrics["learning_rate"])
    rank.close()


def test_demonstrations_without_a_response_are_refused(tiny_model: Path) -> None:
    rank = start(tiny_model)
    with pytest.raises(UserError, match="none of 1 demonstrations"):
        rank.step([Demonstration(token_ids=array("i", [3, 4]), loss_mask=array("b", [0, 0]))])
    rank.close()
