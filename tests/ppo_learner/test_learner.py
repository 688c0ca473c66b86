"""One rank's steps: what they report, what changes the weights and what must not."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ppo_learner.algorithms import ALGORITHMS
from ppo_learner.config import LearnerConfig
from ppo_learner.learner import LearnerRank
from services.contracts.errors import NonFiniteStep, UserError
from services.contracts.records import ScoredGroup
from tests.ppo_learner.builders import (
    is_of_the_machine,
    make_group,
    random_groups,
    same_update,
    start_rank,
    weights_of,
    with_steps,
)

FAST = {"lr": 1e-3, "critic_lr": 1e-3, "max_tokens_per_micro_batch": 64}
VARIANTS: list[dict[str, Any]] = [
    {"critic": "value_head", "entropy_coefficient": 0.01, "num_epochs": 2, "num_minibatches": 3},
    {"kl_coefficient": 0.1, "num_minibatches": 2, "loss_aggregation": "sequence_mean"},
    {"algorithm": "grpo", "kl_coefficient": 0.1, "kl_placement": "loss", "kl_estimator": "k3"},
    {"algorithm": "grpo", "importance_correction": "icepop", "num_minibatches": 2},
    {"algorithm": "rloo", "importance_correction": "sequence_tis", "loss_aggregation": "sequence_mean"},
    {"algorithm": "gspo", "num_minibatches": 2, "importance_correction": "token_tis"},
    {"algorithm": "dr_grpo", "num_minibatches": 2, "dual_clip": 3.0, "entropy_coefficient": 0.01},
    {"value_clip": None, "value_huber_delta": 0.5, "normalise_returns": True, "turn_gamma": 0.5},
    {"algorithm": "dapo", "difficulty_weighting": True, "length_penalty": 0.1, "solved_reward": 0.5},
    {"algorithm": "grpo", "proximal": "interpolated", "importance_correction": "sequence_mis", "num_minibatches": 2},
]


@contextmanager
def running(model: Path, options: dict[str, Any] | None = None, **config: Any) -> Iterator[LearnerRank]:
    """A rank that is closed afterwards; `config` are learner settings, `options` the rank's other arguments."""
    rank = start_rank(LearnerConfig.model_validate(FAST | config), model, **(options or {}))
    try:
        yield rank
    finally:
        rank.close()


def with_infinite_reward(groups: list[ScoredGroup]) -> list[ScoredGroup]:
    first, *others = groups[0].rewards
    return [replace(groups[0], rewards=(replace(first, value=math.inf), *others)), *groups[1:]]


@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_the_split_into_micro_batches_changes_neither_report_nor_weights(
    config: dict[str, Any], tiny_model: Path
) -> None:
    outcomes = []
    for budget in (40, 100_000):
        with running(tiny_model, **config | {"max_tokens_per_micro_batch": budget}) as rank:
            start = weights_of(rank)
            rank.step(random_groups(0))
            report = rank.step(random_groups(1))  # Of version 0, so stale.
            outcomes.append((report.metrics, weights_of(rank)))
    (some, weights), (others, other_weights) = outcomes
    assert some.keys() == others.keys()
    for name in {name for name in some if not is_of_the_machine(name)}:
        assert some[name] == pytest.approx(others[name], rel=1e-4, abs=1e-5), name
    assert same_update(start, weights, other_weights)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_rewarded_token_becomes_more_likely_and_a_worse_one_less(algorithm: str, tiny_model: Path) -> None:
    group = with_steps(make_group([[0, 0, 1], [0, 0, 1]], [1.0, 0.0]), [[(0, 1.0)], [(0, 0.0)]])
    good, bad = group.group.rollouts
    bad.token_ids[:2] = good.token_ids[:2]
    with running(tiny_model, {"canary_sequences": (good.token_ids, bad.token_ids)}, algorithm=algorithm) as rank:
        before = rank.publish(0)
        for _ in range(5):
            rank.step([group])
        after = rank.publish(1)
    assert before and after
    (good_before, bad_before), (good_after, bad_after) = (p.manifest.canary.logprobs for p in (before, after))
    assert good_after[-1] > good_before[-1]
    assert bad_after[-1] < bad_before[-1]


def test_a_report_carries_what_the_run_watches(tiny_model: Path) -> None:
    groups = random_groups(0)
    with running(tiny_model, kl_coefficient=0.1) as rank:
        report = rank.step(groups)
    rewards = [reward.value for group in groups for reward in group.rewards]
    lengths = [rollout.num_completion_tokens for group in groups for rollout in group.group.rollouts]
    assert report.step == 1
    assert report.metrics["reward/mean"] == pytest.approx(sum(rewards) / len(rewards))
    assert report.metrics["reward/shape"] == pytest.approx(sum(rewards) / len(rewards) / 2)
    assert report.metrics["completion_tokens/max"] == max(lengths)
    assert report.metrics["learner/tokens"] == sum(len(r.token_ids) for group in groups for r in group.group.rollouts)
    assert report.metrics["kl/reference"] == pytest.approx(0, abs=1e-6)
    wanted = {
        "policy_loss", "value_loss", "entropy", "kl/old", "clip_fraction", "explained_variance",
        "gradient_norm/policy", "gradient_norm/critic", "learning_rate", "kl_coefficient", "advantage/mean",
        "advantage/std", "sampler_gap/mean", "sampler_gap/max", "learner/tokens_per_second", "seconds/learner/train",
        "zero_variance_groups",
    }  # fmt: skip
    assert wanted <= report.metrics.keys()
    assert all(type(value) is float and math.isfinite(value) for value in report.metrics.values())


def test_the_sampler_gap_is_zero_for_the_learners_own_logprobs(tiny_model: Path) -> None:
    groups = random_groups(0, num_groups=1)
    sequences = tuple(rollout.token_ids for rollout in groups[0].group.rollouts)
    with running(tiny_model, {"canary_sequences": sequences}, algorithm="grpo") as rank:
        publication = rank.publish(0)
        assert publication
        for rollout, logprobs in zip(groups[0].group.rollouts, publication.manifest.canary.logprobs, strict=True):
            rollout.logprobs[1:] = logprobs
        report = rank.step(groups)
    assert report.metrics["sampler_gap/max"] == pytest.approx(0, abs=1e-5)


def test_reported_logprobs_may_stand_for_the_proximal_policy(tiny_model: Path) -> None:
    with running(tiny_model, algorithm="grpo", proximal="sampler") as rank:
        report = rank.step(random_groups(0))
    # The made-up logprobs are far from the model's, so most ratios are.
    assert report.metrics["clip_fraction"] > 0.2
    assert report.metrics["clip_fraction"] == pytest.approx(
        report.metrics["clip_fraction/low"] + report.metrics["clip_fraction/high"]
    )
    assert report.metrics["kl/old"] > 0.1


def test_tokens_that_no_policy_sampled_change_nothing_but_what_follows_them(tiny_model: Path) -> None:
    # The tool's last token is seen by no sampled token when the turn ends with it, so the update cannot depend on it.
    outcomes = []
    for last_token in (5, 30):
        group = make_group([[0, 0, 1, 1, 0, 1, 0], [0, 0, 1, 0, 1, 1, 0]], [1.0, 0.0])
        for rollout in group.group.rollouts:
            rollout.token_ids[-1] = last_token
        with running(tiny_model, kl_coefficient=0.1) as rank:
            rank.step([group])
            outcomes.append(weights_of(rank))
    for name, weight in outcomes[0].items():
        assert torch.equal(weight, outcomes[1][name]), name


def count_passes_with_gradient(network: nn.Module) -> list[None]:
    """One entry for each time that a layer's attention is entered from now on, but for evaluations."""
    entered: list[None] = []

    def enter(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        entered.extend([None] * torch.is_grad_enabled())

    for name, module in network.named_modules():
        if name.endswith("self_attn"):
            # Before it and not behind it: a layer is made again only as far as its backward pass wants.
            module.register_forward_pre_hook(enter)
    return entered


def test_gradient_checkpointing_makes_every_layer_again_and_changes_nothing(tiny_model: Path) -> None:
    outcomes, passes = [], []
    for checkpointing in (False, True):
        with running(tiny_model, gradient_checkpointing=checkpointing) as rank:
            policy, critic = rank._networks.policy, rank._networks.critic
            assert critic
            entered = [count_passes_with_gradient(engine.module) for engine in (policy, critic)]
            start = weights_of(rank)
            rank.step(random_groups(0))
            outcomes.append(weights_of(rank))
            passes.append([len(of_network) for of_network in entered])
    once, twice = passes
    assert min(once) > 0 and twice == [2 * number for number in once]
    assert same_update(start, *outcomes)


def test_the_critic_warms_up_while_the_policy_stands_still(tiny_model: Path) -> None:
    with running(tiny_model, critic_warmup_steps=1) as rank:
        start = weights_of(rank)
        warm_up = rank.step(random_groups(0))
        warm = weights_of(rank)
        rank.step(random_groups(1))
        trained = weights_of(rank)
    policy = [name for name in start if name.startswith("policy.")]
    critic = [name for name in start if name.startswith("critic.")]
    assert all(torch.equal(start[name], warm[name]) for name in policy)
    assert any(not torch.equal(start[name], warm[name]) for name in critic)
    assert all(not torch.equal(warm[name], trained[name]) for name in policy)
    assert "value_loss" in warm_up.metrics and "policy_loss" not in warm_up.metrics


def test_a_kl_below_its_target_lowers_the_coefficient(tiny_model: Path) -> None:
    with running(tiny_model, kl_coefficient=0.1, kl_target=5.0, kl_horizon=100) as rank:
        first, second = rank.step(random_groups(0)), rank.step(random_groups(1))
    assert first.metrics["kl_coefficient"] == 0.1
    assert second.metrics["kl_coefficient"] == pytest.approx(0.1 * (1 - 0.2 * 12 / 100))


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_a_reference_is_loaded_for_a_penalty_only(algorithm: str, tiny_model: Path) -> None:
    penalty = {"kl_coefficient": 0.1, "kl_placement": "loss", "kl_estimator": "k3"}
    for settings in ({}, penalty):
        with running(tiny_model, algorithm=algorithm, **settings) as rank:
            assert rank._networks.has_reference == bool(settings)


def test_updates_after_the_kl_passed_its_stop_are_left_out_and_counted(tiny_model: Path) -> None:
    options = {"algorithm": "grpo", "num_epochs": 2, "num_minibatches": 2, "lr": 1e-2}
    with running(tiny_model, **options) as rank:
        free = rank.step(random_groups(0)).metrics
        after_four = weights_of(rank)
    with running(tiny_model, **options, kl_stop=free["kl/old"] / 100) as rank:
        stopped = rank.step(random_groups(0)).metrics
        after_fewer = weights_of(rank)
    with running(tiny_model, **options, kl_stop=1e9) as rank:
        far = rank.step(random_groups(0)).metrics
        assert all(torch.equal(weight, after_four[name]) for name, weight in weights_of(rank).items())
    assert (free["updates"], free["updates_left_out"]) == (far["updates"], far["updates_left_out"]) == (4, 0)
    # The first update starts at the old policy itself; the second finds that it has moved.
    assert (stopped["updates"], stopped["updates_left_out"]) == (2, 2)
    assert 0 < stopped["kl/old"] < free["kl/old"]
    assert any(not torch.equal(weight, after_four[name]) for name, weight in after_fewer.items())


def test_a_constant_length_scales_the_loss_and_none_of_the_metrics(tiny_model: Path) -> None:
    reports = []
    for aggregation in ("token_mean", "constant_length"):
        with running(tiny_model, algorithm="dr_grpo", loss_aggregation=aggregation, entropy_coefficient=0.01) as rank:
            reports.append(rank.step(random_groups(0)).metrics)
    mean, constant = reports
    groups = random_groups(0)
    tokens = sum(sum(rollout.loss_mask) for group in groups for rollout in group.group.rollouts)
    scale = tokens / (12 * 32)  # `start_rank` says 32 tokens are the longest.
    assert constant["gradient_norm/policy"] == pytest.approx(scale * mean["gradient_norm/policy"], rel=1e-4)
    for name in ("policy_loss", "entropy", "clip_fraction", "kl/old"):
        assert constant[name] == pytest.approx(mean[name], rel=1e-5, abs=1e-7)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # The infinite reward's own statistics.
def test_a_non_finite_step_is_skipped_and_the_third_in_a_row_stops(tiny_model: Path) -> None:
    broken = with_infinite_reward(random_groups(0))
    with running(tiny_model) as rank:
        start = weights_of(rank)
        assert rank.step(broken).metrics["updates_skipped"] == 1
        rank.step(broken)
        assert all(torch.equal(weight, start[name]) for name, weight in weights_of(rank).items())
        assert rank.step(random_groups(1)).metrics["updates_skipped"] == 0
        assert not all(torch.equal(weight, start[name]) for name, weight in weights_of(rank).items())
        rank.step(broken)
        rank.step(broken)
        with pytest.raises(NonFiniteStep, match="3 updates in a row"):
            rank.step(broken)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_every_stage_and_format_skips_what_is_not_finite_and_trains_what_is(
    zero_stage: int, dtype: str, tiny_model: Path
) -> None:
    with running(tiny_model, {"dtype": dtype}, algorithm="grpo", zero_stage=zero_stage, lr=1e-2) as rank:
        start = weights_of(rank)
        skipped = rank.step(with_infinite_reward(random_groups(0)))
        between = weights_of(rank)
        trained = rank.step(random_groups(0))
        end = weights_of(rank)
    assert skipped.metrics["updates_skipped"] == 1 and not math.isfinite(skipped.metrics["gradient_norm/policy"])
    assert all(torch.equal(weight, start[name]) for name, weight in between.items())
    assert trained.metrics["updates_skipped"] == 0 and trained.metrics["gradient_norm/policy"] > 0
    assert all(not torch.equal(weight, start[name]) for name, weight in end.items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"transport": "pigeon"}, "'pigeon' does not exist"),
        ({"model": Path("/nowhere")}, "'/nowhere' cannot be loaded"),
    ],
)
def test_a_rank_that_cannot_work_says_why(
    options: dict[str, Any], said: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepspeed.comm.comm.cdb", None)  # As in a process that trained nothing before.
    model = options.pop("model", tiny_model)
    with pytest.raises(UserError, match=said):
        start_rank(LearnerConfig(), model, **options)


def test_a_step_without_a_sampled_token_is_refused(tiny_model: Path) -> None:
    with running(tiny_model) as rank, pytest.raises(UserError, match="none of the step's 2 rollouts"):
        rank.step([make_group([[0, 0], [0]], [1.0, 0.0])])
