"""Demonstrations beside rollouts: the gradient of a learner step is RL's plus λ times that of supervised training."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from ppo_learner import partitions
from ppo_learner.config import LearnerConfig
from ppo_learner.demonstrations import DemonstrationTask
from ppo_learner.engine import Engine
from ppo_learner.learner import LearnerRank
from ppo_learner.mixing import shares
from ppo_learner.supervised_config import SupervisedConfig
from services.contracts.records import Demonstration, WeightedDemonstrations
from tests.ppo_learner.builders import is_of_the_machine, random_groups, same_update, start_rank, weights_of
from tests.ppo_learner.supervised_ranks import start_supervised
from tests.ppo_learner.test_moe import write_experts
from tests.ppo_learner.test_supervised import make_demonstrations
from tests.tiny import tiny_tokenizer, write_tiny_model

COEFFICIENT = 3.0
UNCLIPPED = {"lr": 1e-3, "max_gradient_norm": 0.0}
ALONE = {"algorithm": "rloo", "max_tokens_per_micro_batch": 40}
CASES: dict[str, dict[str, Any]] = {
    "padded": ALONE,
    "packed": ALONE | {"packing": "on"},
    "value head": {"critic": "value_head", "max_tokens_per_micro_batch": 64, "kl_coefficient": 0.1},
    "adapters": ALONE | {"lora": {"rank": 4}},
    "experts": ALONE | {"router_loss_coefficient": 0.1},
}


def weighted(demonstrations: Sequence[Demonstration], coefficient: float = COEFFICIENT) -> WeightedDemonstrations:
    return WeightedDemonstrations(demonstrations=tuple(demonstrations), coefficient=coefficient)


def start(model: Path, *, temperature: float = 1.0, **settings: Any) -> LearnerRank:
    return start_rank(LearnerConfig.model_validate(UNCLIPPED | settings), model, temperature=temperature)


def gradient(engine: Engine) -> dict[str, Tensor]:
    """Of the first update, whose gradient is what AdamW's first moment was made of: m = (1 − β₁)·g."""
    states = partitions.states_of(engine._engine, stage=0)
    return {
        name: states[parameter]["exp_avg"] / (1 - 0.9)
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad
    }


def rl_gradient(model: Path, beside: WeightedDemonstrations | None, **settings: Any) -> dict[str, Tensor]:
    rank = start(model, **settings)
    rank.step(random_groups(0), beside)
    found = gradient(rank._networks.policy)
    rank.close()
    return found


def sft_gradient(model: Path, demonstrations: Sequence[Demonstration], **settings: Any) -> dict[str, Tensor]:
    common = {name: value for name, value in settings.items() if name in SupervisedConfig.model_fields}
    config = SupervisedConfig.model_validate(UNCLIPPED | common)
    rank = start_supervised(DemonstrationTask, model, config)
    rank.step(demonstrations)
    found = gradient(rank._network)
    rank.close()
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_rl_plus_the_weighted_one_of_supervised_training(
    case: str, tiny_model: Path, tmp_path: Path
) -> None:
    model, settings = write_experts(tmp_path) if case == "experts" else tiny_model, CASES[case]
    demonstrations = make_demonstrations(3)
    alone = rl_gradient(model, None, temperature=0.7, **settings)
    mixed = rl_gradient(model, weighted(demonstrations), temperature=0.7, **settings)
    supervised = sft_gradient(model, demonstrations, **settings)
    assert mixed.keys() == alone.keys() == supervised.keys() | {n for n in alone if n.startswith("value_head")}
    assert sum(float(part.norm()) for part in supervised.values()) > 0
    for name, found in mixed.items():
        expected = alone[name] + COEFFICIENT * supervised.get(name, torch.zeros(()))
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * scale + 1e-7, msg=lambda text, n=name: n + text)


@pytest.mark.parametrize("case", ["padded", "value head"])
def test_the_gradient_of_rl_counts_what_the_demonstrations_leave_it(case: str, tiny_model: Path) -> None:
    # λ = ¾ leaves the policy's loss ¼ and takes nothing from the critic's, which is the only one of the value head.
    demonstrations, settings = make_demonstrations(3), CASES[case]
    beside = WeightedDemonstrations(demonstrations=tuple(demonstrations), coefficient=0.75, policy_weight=0.25)
    alone = rl_gradient(tiny_model, None, **settings)
    mixed = rl_gradient(tiny_model, beside, **settings)
    supervised = sft_gradient(tiny_model, demonstrations, **settings)
    heads = [name for name in alone if name.startswith("value_head")]
    assert bool(heads) == (case == "value head")
    for name in heads:
        torch.testing.assert_close(mixed[name], alone[name])
    for name in supervised if not heads else ():
        expected = 0.25 * alone[name] + 0.75 * supervised[name]
        tolerance = 1e-4 * float(expected.abs().max()) + 1e-7
        torch.testing.assert_close(mixed[name], expected, rtol=0, atol=tolerance)


def test_the_added_gradient_is_that_of_transformers_own_loss_and_the_slope_of_numpys(tiny_model: Path) -> None:
    demonstrations = make_demonstrations(4)
    alone = rl_gradient(tiny_model, None, **ALONE)
    mixed = rl_gradient(tiny_model, weighted(demonstrations), **ALONE)
    added = {name.removeprefix("language_model."): (mixed[name] - alone[name]).double() for name in mixed}
    network = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    num_learnt = sum(sum(demonstration.loss_mask) for demonstration in demonstrations)
    for demonstration in demonstrations:
        ids = torch.tensor(demonstration.token_ids)
        labels = torch.where(torch.tensor(demonstration.loss_mask).bool(), ids, -100)
        loss = network(ids[None], labels=labels[None]).loss
        (loss * sum(demonstration.loss_mask) / num_learnt).backward()
    for name, weight in network.named_parameters():
        tolerance = 1e-3 * COEFFICIENT * float(weight.grad.abs().max())
        torch.testing.assert_close(added[name], COEFFICIENT * weight.grad, rtol=0, atol=tolerance)
    draw = torch.Generator().manual_seed(0)
    directions = {name: torch.randn(part.shape, generator=draw).double() for name, part in added.items()}
    slope = (
        loss_at(network, directions, 1e-5, demonstrations) - loss_at(network, directions, -1e-5, demonstrations)
    ) / 2e-5
    expected = sum(float((added[name] * direction).sum()) for name, direction in directions.items())
    assert expected == pytest.approx(COEFFICIENT * slope, rel=1e-3)


@torch.no_grad()
def loss_at(
    network: Any, directions: dict[str, Tensor], step: float, demonstrations: Sequence[Demonstration]
) -> float:  # Any: transformers
    """`numpy_loss` of the network so far from where it is, in the given directions; it is left where it was."""
    for name, weight in network.named_parameters():
        weight.add_(step * directions[name])
    loss = numpy_loss(network, demonstrations)
    for name, weight in network.named_parameters():
        weight.sub_(step * directions[name])
    return loss


def numpy_loss(network: Any, demonstrations: Sequence[Demonstration]) -> float:  # Any: transformers
    """−mean log π over the learnt tokens, by NumPy from a model's logits."""
    losses: list[float] = []
    for demonstration in demonstrations:
        logits = network(torch.tensor(demonstration.token_ids)[None]).logits[0].detach().double().numpy()
        logprobs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        logprobs -= logits.max(-1, keepdims=True)
        learnt = [position for position, mask in enumerate(demonstration.loss_mask) if mask]
        losses += [-logprobs[position - 1, demonstration.token_ids[position]] for position in learnt]
    return float(np.mean(losses))


def test_a_step_reports_loss_coefficient_and_tokens_of_its_demonstrations(tiny_model: Path) -> None:
    demonstrations, groups = make_demonstrations(6), random_groups(0)
    network = AutoModelForCausalLM.from_pretrained(tiny_model)
    rank = start(tiny_model, temperature=0.5, **ALONE)
    metrics = rank.step(groups, weighted(demonstrations)).metrics
    rank.close()
    assert metrics["demonstrations/loss"] == pytest.approx(numpy_loss(network, demonstrations), rel=1e-5)
    assert metrics["demonstrations/coefficient"] == COEFFICIENT
    assert metrics["demonstrations/tokens"] == sum(sum(one.loss_mask) for one in demonstrations)
    sequences = [*(r for group in groups for r in group.group.rollouts), *demonstrations]
    assert metrics["learner/tokens"] == sum(len(sequence.token_ids) for sequence in sequences)


def test_updates_that_are_left_out_take_their_demonstrations_with_them(tiny_model: Path) -> None:
    demonstrations = make_demonstrations(0, count=8)
    rank = start(tiny_model, **ALONE, num_minibatches=4, kl_stop=1e-9)
    metrics = rank.step(random_groups(0), weighted(demonstrations)).metrics
    rank.close()
    num_updates = 4 - int(metrics["updates_left_out"])
    # The first update starts at the policy that the ratio compares with, so only a later one can find that it moved.
    assert 2 <= num_updates < 4
    learnt = [one for part in shares(demonstrations, 4)[:num_updates] for one in part]
    assert metrics["demonstrations/tokens"] == sum(sum(one.loss_mask) for one in learnt)


def test_a_model_that_knows_nothing_loses_the_logarithm_of_its_vocabulary(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path)
    network = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        network.get_input_embeddings().weight.zero_()  # The head's weights, too.
    network.save_pretrained(model)
    rank = start(model, **ALONE)
    metrics = rank.step(random_groups(0), weighted(make_demonstrations(7))).metrics
    rank.close()
    assert metrics["demonstrations/loss"] == pytest.approx(math.log(len(tiny_tokenizer())), rel=1e-5)


@pytest.mark.parametrize(
    "settings", [{"num_epochs": 2, "num_minibatches": 2}, {"critic": "value_head", "packing": "on"}], ids=str
)
def test_neither_report_nor_weights_depend_on_the_split_into_micro_batches(
    settings: dict[str, Any], tiny_model: Path
) -> None:
    outcomes = []
    for budget in (16, 100_000):
        rank = start(tiny_model, **settings, max_tokens_per_micro_batch=budget)
        first = weights_of(rank)
        rank.step(random_groups(0), weighted(make_demonstrations(0, count=9)))
        report = rank.step(random_groups(1), weighted(make_demonstrations(1, count=9)))
        outcomes.append((report.metrics, weights_of(rank)))
        rank.close()
    (some, weights), (others, other_weights) = outcomes
    assert some["demonstrations/tokens"] == sum(sum(one.loss_mask) for one in make_demonstrations(1, count=9))
    for name in {name for name in some if not is_of_the_machine(name)}:
        assert some[name] == pytest.approx(others[name], rel=1e-4, abs=1e-5), name
    assert same_update(first, weights, other_weights)


def test_each_demonstration_is_in_one_update() -> None:
    demonstrations = make_demonstrations(0, count=7)
    parts = shares(demonstrations, 3)
    assert [len(part) for part in parts] == [2, 2, 3]
    assert [one for part in parts for one in part] == demonstrations


def test_demonstrations_are_learnt_where_rewards_teach_nothing(tiny_model: Path) -> None:
    demonstrations = make_demonstrations(8)
    rank = start(tiny_model, algorithm="grpo", kl_coefficient=0.0)
    losses = [
        rank.step(random_groups(step), weighted(demonstrations)).metrics["demonstrations/loss"] for step in range(8)
    ]
    rank.close()
    assert losses[-1] < losses[0] - 0.5


def test_with_a_coefficient_of_0_a_step_is_that_of_its_rollouts_to_the_bit(tiny_model: Path) -> None:
    outcomes = []
    for beside in (None, weighted(make_demonstrations(0), 0.0)):
        rank = start(tiny_model, **ALONE)
        metrics = rank.step(random_groups(0), beside).metrics
        outcomes.append(weights_of(rank))
        rank.close()
        assert "demonstrations/loss" not in metrics
        if beside:
            assert (metrics["demonstrations/coefficient"], metrics["demonstrations/tokens"]) == (0.0, 0.0)
    assert all(torch.equal(weight, outcomes[1][name]) for name, weight in outcomes[0].items())


def test_a_policy_that_waits_for_its_critic_learns_no_demonstration(tiny_model: Path) -> None:
    rank = start(tiny_model, critic_warmup_steps=1)
    first = weights_of(rank)
    metrics = rank.step(random_groups(0), weighted(make_demonstrations(0))).metrics
    assert metrics["demonstrations/tokens"] == 0
    assert all(torch.equal(w, first[name]) for name, w in weights_of(rank).items() if name.startswith("policy."))
    assert rank.step(random_groups(1), weighted(make_demonstrations(1))).metrics["demonstrations/tokens"] > 0
    rank.close()


def test_a_loss_that_is_not_finite_skips_the_update(tiny_model: Path) -> None:
    rank = start(tiny_model, **ALONE)
    first = weights_of(rank)
    metrics = rank.step(random_groups(0), weighted(make_demonstrations(0), math.inf)).metrics
    assert metrics["updates_skipped"] == 1
    assert all(torch.equal(weight, first[name]) for name, weight in weights_of(rank).items())
    rank.close()
