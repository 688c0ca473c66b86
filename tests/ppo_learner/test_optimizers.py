"""Each rule of steps: against an independent implementation, at every ZeRO stage, and that it learns.

Two ranks and resumed runs with muon are tested in `test_ranks`.
"""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from ppo_learner.config import LearnerConfig
from ppo_learner.demonstrations import DemonstrationTask
from ppo_learner.models import Policy
from ppo_learner.optimizer_config import OptimizerConfig
from ppo_learner.optimizers import OPTIMIZERS, parameter_groups, set_learning_rates
from ppo_learner.supervised_config import SupervisedConfig
from tests.ppo_learner import numpy_reference
from tests.ppo_learner.builders import MUON_WITHIN, random_groups, same_update, start_rank, weights_of
from tests.ppo_learner.supervised_ranks import start_supervised
from tests.ppo_learner.test_learner import with_infinite_reward
from tests.ppo_learner.test_supervised import make_demonstrations


def test_the_settings_offer_what_the_dict_has() -> None:
    assert list(get_args(OptimizerConfig.model_fields["optimizer"].annotation)) == list(OPTIMIZERS)


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_muon_takes_the_steps_of_the_paper(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    gradients = [draw.normal(size=shape) for _ in range(3)]
    layer = nn.Linear(shape[1], shape[0], bias=False)
    start = layer.weight.detach().double().numpy().copy()
    config = OptimizerConfig(optimizer="muon", weight_decay=0.1)
    optimizer = OPTIMIZERS["muon"](parameter_groups(layer, [list(layer.parameters())], config), config)
    set_learning_rates(optimizer, [0.01])
    expected = start
    for step in numpy_reference.muon_steps(gradients, momentum=0.95, size=0.2):
        expected = (1 - 0.01 * 0.1) * expected - 0.01 * step
    for gradient in gradients:
        layer.weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    # Newton–Schulz runs in half precision where the processor has it.
    moved = layer.weight.detach().double().numpy() - start
    assert np.linalg.norm(moved - (expected - start)) < 0.01 * np.linalg.norm(expected - start)


def test_the_size_of_muons_step_is_that_of_adamw_whatever_the_gradients(tiny_model: Path) -> None:
    sizes = {}
    for scale in (1e-3, 1e3):
        layer = nn.Linear(64, 128, bias=False)
        start = layer.weight.detach().clone()
        config = OptimizerConfig(optimizer="muon")
        optimizer = OPTIMIZERS["muon"](parameter_groups(layer, [list(layer.parameters())], config), config)
        set_learning_rates(optimizer, [1.0])
        layer.weight.grad = scale * torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        sizes[scale] = float((layer.weight.detach() - start).square().mean().sqrt())
    # Five iterations leave singular values between 0.7 and 1.2.
    assert sizes[1e-3] == pytest.approx(sizes[1e3], rel=1e-2) and sizes[1e3] == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize("model", ["tiny_model", "untied_model"])
def test_muon_steps_linear_layers_and_adamw_the_rest(model: str, request: pytest.FixtureRequest) -> None:
    language_model = AutoModelForCausalLM.from_pretrained(request.getfixturevalue(model))
    policy = Policy(language_model, temperature=1.0, value_head=True)
    assert policy.value_head is not None
    parts = [list(language_model.parameters()), list(policy.value_head.parameters())]
    groups = parameter_groups(policy, parts, OptimizerConfig(optimizer="muon"))
    names = {id(weight): name for name, weight in policy.named_parameters()}
    matrices = {names[id(weight)] for group in groups if "muon" in group for weight in group["params"]}
    assert matrices == {name for name in names.values() if name.endswith("_proj.weight")}
    every = sorted(names[id(weight)] for group in groups for weight in group["params"])
    assert every == sorted(names.values())
    assert [group["part"] for group in groups] == [0, 0, 0, 1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_learns_and_resumes_to_the_bit(optimizer: Any, tiny_model: Path, tmp_path: Path) -> None:
    demonstrations = make_demonstrations(1)
    learner = SupervisedConfig(optimizer=optimizer, lr=3e-3)
    rank = start_supervised(DemonstrationTask, tiny_model, learner)
    losses = []
    for step in range(8):
        losses.append(rank.step(demonstrations).metrics["loss"])
        if step == 5:
            rank.save(tmp_path)
    rank.close()
    assert losses[-1] < losses[0] / 2
    resumed = start_supervised(DemonstrationTask, tiny_model, learner)
    resumed.load(tmp_path)
    assert [resumed.step(demonstrations).metrics["loss"] for _ in range(2)] == losses[6:]
    resumed.close()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("optimizer", ["adamw_8bit", "muon"])
def test_every_stage_makes_the_same_steps_and_skips_what_is_not_finite(optimizer: str, tiny_model: Path) -> None:
    ends: list[dict[str, torch.Tensor]] = []
    for zero_stage in range(4):
        config = LearnerConfig.model_validate(
            {"algorithm": "grpo", "optimizer": optimizer, "zero_stage": zero_stage, "lr": 1e-3}
        )
        rank = start_rank(config, tiny_model)
        start = weights_of(rank)
        rank.step(random_groups(0))
        between = weights_of(rank)
        assert rank.step(with_infinite_reward(random_groups(1))).metrics["updates_skipped"] == 1
        assert all(torch.equal(weight, between[name]) for name, weight in weights_of(rank).items())
        assert rank.step(random_groups(1)).metrics["updates_skipped"] == 0
        ends.append(weights_of(rank))
        rank.close()
    # Moments of 8 bits are scaled by blocks, which lie elsewhere once all weights are one flat tensor.
    whole, *sharded = ends
    if optimizer == "muon":
        assert all(same_update(start, whole, end, within=MUON_WITHIN) for end in sharded)
    else:
        assert all(same_update(start, sharded[0], end) for end in sharded[1:])


def test_moments_of_8_bits_take_one_byte_a_number() -> None:
    layer = nn.Linear(128, 64, bias=False)
    config = OptimizerConfig(optimizer="adamw_8bit")
    optimizer = OPTIMIZERS["adamw_8bit"](parameter_groups(layer, [list(layer.parameters())], config), config)
    layer(torch.ones(1, 128)).sum().backward()
    optimizer.step()
    state = optimizer.state[layer.weight]
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8
