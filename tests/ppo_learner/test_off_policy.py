"""A learner whose rollouts are not its own: what corrections change, what they leave alone, and what is reported."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ppo_learner.config import LearnerConfig
from ppo_learner.importance import IMPORTANCE_CORRECTIONS
from ppo_learner.learner import LearnerRank
from services.contracts.records import ScoredGroup
from tests.ppo_learner.builders import random_groups, same_update, start_rank, weights_of

CORRECTED = [name for name in IMPORTANCE_CORRECTIONS if name != "none"]


@contextmanager
def running(model: Path, **config: Any) -> Iterator[LearnerRank]:
    rank = start_rank(LearnerConfig.model_validate({"algorithm": "grpo", "lr": 1e-3} | config), model)
    try:
        yield rank
    finally:
        rank.close()


def with_the_learners_logprobs(groups: list[ScoredGroup], model: Path) -> list[ScoredGroup]:
    """The same rollouts, as if the learner's own untrained weights had sampled them."""
    rollouts = [rollout for group in groups for rollout in group.group.rollouts]
    rank = start_rank(LearnerConfig(), model, canary_sequences=tuple(rollout.token_ids for rollout in rollouts))
    publication = rank.publish(0)
    rank.close()
    assert publication
    for rollout, logprobs in zip(rollouts, publication.manifest.canary.logprobs, strict=True):
        rollout.logprobs[1:] = logprobs
    return groups


def with_versions(groups: list[ScoredGroup], version: int) -> list[ScoredGroup]:
    for group in groups:
        for rollout in group.group.rollouts:
            for t, sampled in enumerate(rollout.loss_mask):
                rollout.policy_versions[t] = version if sampled else rollout.policy_versions[t]
    return groups


def update(model: Path, groups: list[ScoredGroup], **config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights before and after one step."""
    with running(model, **config) as rank:
        start = weights_of(rank)
        rank.step(groups)
        return start, weights_of(rank)


@pytest.mark.parametrize("correction", CORRECTED)
def test_a_correction_matters_only_where_sampler_and_learner_differ(correction: str, tiny_model: Path) -> None:
    made_up, own = random_groups(0), with_the_learners_logprobs(random_groups(0), tiny_model)
    start, plain = update(tiny_model, own)
    _, corrected_own = update(tiny_model, own, importance_correction=correction)
    _, corrected_made_up = update(tiny_model, made_up, importance_correction=correction)
    assert same_update(start, plain, corrected_own)
    assert not same_update(start, plain, corrected_made_up)


def test_the_version_of_a_token_moves_an_interpolated_proximal_policy(tiny_model: Path) -> None:
    options = {"proximal": "interpolated", "importance_correction": "token_tis", "num_minibatches": 2}
    outcomes = []
    for version in (0, 1, 5):  # The learner's is 1 in the second step; newer tokens count as fresh ones.
        with running(tiny_model, **options) as rank:
            start = weights_of(rank)
            rank.step(random_groups(0))
            rank.step(with_versions(random_groups(1), version))
            outcomes.append(weights_of(rank))
    stale, fresh, newer = outcomes
    assert not same_update(start, stale, fresh)
    assert all(torch.equal(weight, newer[name]) for name, weight in fresh.items())


def test_the_report_tells_how_far_the_sampler_is_and_what_the_weights_are(tiny_model: Path) -> None:
    groups = random_groups(0)
    with running(tiny_model, importance_correction="token_tis", importance_cap=1.1) as rank:
        corrected = rank.step(groups).metrics
    with running(tiny_model) as rank:
        plain = rank.step(groups).metrics
    ratios = {"importance/ratio_max", "importance/ratio_kl", "importance/ratio_ess", "importance/ratio_sequence_ess"}
    weights = {"importance/mean", "importance/ess", "importance/clipped"}
    assert {name for name in plain if name.startswith("importance")} == ratios
    assert {name for name in corrected if name.startswith("importance")} == ratios | weights
    assert all(corrected[name] == pytest.approx(plain[name], rel=1e-5) for name in ratios)
    assert all(type(value) is float and math.isfinite(value) for value in corrected.values())
    assert corrected["importance/ratio_max"] > 1.1 and corrected["importance/mean"] < 1.1
    assert 0 < corrected["importance/clipped"] < 1
    assert 0 < plain["importance/ratio_sequence_ess"] < plain["importance/ratio_ess"] < corrected["importance/ess"] < 1


def test_a_sampler_that_agrees_has_the_full_effective_sample_size(tiny_model: Path) -> None:
    groups = with_the_learners_logprobs(random_groups(0), tiny_model)
    with running(tiny_model, importance_correction="icepop") as rank:
        metrics = rank.step(groups).metrics
    for name in ("importance/ratio_ess", "importance/ratio_sequence_ess", "importance/ess", "importance/ratio_max"):
        assert metrics[name] == pytest.approx(1.0, abs=1e-4)
    assert metrics["importance/clipped"] == 0 and metrics["importance/ratio_kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("options", [{}, {"proximal": "interpolated", "importance_correction": "token_tis"}], ids=str)
def test_what_is_told_of_the_sampler_is_of_the_policy_at_the_start_also_with_many_updates(
    options: dict[str, Any], tiny_model: Path
) -> None:
    groups = with_the_learners_logprobs(random_groups(0), tiny_model)
    with running(tiny_model, **{"proximal": "sampler", "num_minibatches": 2, "num_epochs": 2} | options) as rank:
        metrics = rank.step(groups).metrics
    assert metrics["ratio/max"] > 1.01, "the updates moved nothing"
    assert metrics["sampler_gap/max"] < 1e-5
    assert metrics["importance/ratio_sequence_ess"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("config", "evaluates"),
    [
        ({}, False),
        ({"importance_correction": "token_tis"}, False),
        ({"num_minibatches": 2}, True),
        ({"num_minibatches": 2, "proximal": "sampler"}, False),
        ({"num_minibatches": 2, "proximal": "interpolated", "importance_correction": "token_tis"}, False),
    ],
    ids=str,
)
def test_the_forward_pass_before_the_updates_runs_only_where_the_ratio_needs_it(
    config: dict[str, Any], evaluates: bool, tiny_model: Path
) -> None:
    with running(tiny_model, **config) as rank:
        assert rank._needs_logprobs(rank._rates()) == evaluates
