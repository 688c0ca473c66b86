"""The moving average of the weights: its numbers, its export, and what it leaves alone.

That ranks, ZeRO stages and resumed runs have the same average is tested in `test_ranks`.
"""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ppo_learner.config import LearnerConfig
from ppo_learner.demonstrations import DemonstrationTask
from ppo_learner.supervised_config import SupervisedConfig
from ppo_learner.weight_average import WeightAverage
from tests.ppo_learner.builders import ALONE, random_groups, start_rank, weights_of
from tests.ppo_learner.supervised_ranks import start_supervised
from tests.ppo_learner.test_supervised import make_demonstrations

CONFIG = {"algorithm": "grpo", "lr": 1e-2, "ema_decay": 0.75}


def test_the_average_by_hand() -> None:
    average = WeightAverage([("w", torch.tensor([1.0, 4.0]))], 0.75, ALONE)
    for weight in ([5.0, 4.0], [10.0, 0.0]):
        average.update([("w", torch.tensor(weight))])
    # 0.75·1 + 0.25·5 = 2, 0.75·2 + 0.25·10 = 4; 0.75·4 + 0.25·0 = 3
    held = dict(average.applied([("w", torch.zeros(1, 2)), ("frozen", torch.ones(1))]))
    assert held["w"].tolist() == [[4.0, 3.0]]
    assert held["frozen"].tolist() == [1.0]


def test_small_steps_are_not_lost_where_the_weights_are_bfloat16() -> None:
    average = WeightAverage([("w", torch.ones(1, dtype=torch.bfloat16))], 0.999, ALONE)
    for _ in range(100):
        average.update([("w", torch.tensor([2.0], dtype=torch.bfloat16))])
    (_, held), *_ = average.applied([("w", torch.zeros(1))])
    assert float(held) == pytest.approx(2 - 0.999**100, abs=1e-4)


@pytest.mark.parametrize("more", [{}, {"lora": {"rank": 4}}, {"zero_stage": 3}], ids=["whole", "lora", "zero_3"])
def test_a_step_moves_the_average_once_however_many_updates_it_has(
    more: dict[str, object], tiny_model: Path, tmp_path: Path
) -> None:
    rank = start_rank(LearnerConfig.model_validate(CONFIG | {"num_minibatches": 3} | more), tiny_model)
    start = dict(raw(rank))
    expected = start
    for step in range(2):
        rank.step(random_groups(step))
        expected = {name: 0.75 * expected[name] + 0.25 * weight for name, weight in raw(rank)}
    averages = rank._networks.policy.averaged_parameters()
    assert averages is not None
    for name, average in averages:
        torch.testing.assert_close(average, expected[name])
    weights = weights_of(rank)
    rank.export(tmp_path / "export")
    rank.close()
    for folder, kind in (("export", "policy"), ("export_ema", "average")):
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        for name, weight in exported.named_parameters():
            assert torch.equal(weight, weights[f"{kind}.language_model.{name}"])
    assert (tmp_path / "export_ema" / "adapter").exists() == ("lora" in more)


def raw(rank) -> list[tuple[str, torch.Tensor]]:
    return [(name, weight.clone()) for name, weight in rank._networks.policy.full_parameters()]


def test_a_supervised_run_keeps_and_exports_one_too(tiny_model: Path, tmp_path: Path) -> None:
    demonstrations = make_demonstrations(0)
    rank = start_supervised(DemonstrationTask, tiny_model, SupervisedConfig(lr=3e-3, ema_decay=0.5))
    start = rank.evaluate(demonstrations)["loss"]
    for _ in range(3):
        rank.step(demonstrations)
    end = rank.evaluate(demonstrations)["loss"]
    rank.export(tmp_path / "export")
    rank.close()
    average = start_supervised(DemonstrationTask, tmp_path / "export_ema", SupervisedConfig())
    assert end < average.evaluate(demonstrations)["loss"] < start
    average.close()


def test_without_a_decay_nothing_is_kept_or_exported(tiny_model: Path, tmp_path: Path) -> None:
    rank = start_rank(LearnerConfig(algorithm="grpo"), tiny_model)
    rank.export(tmp_path / "export")
    assert rank._networks.policy.averaged_parameters() is None
    rank.close()
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
