"""Learner and rollout worker on one GPU, a process each: sample, score, learn, publish, load."""

import time
from pathlib import Path
from typing import Any

import pytest

from ppo_learner.config import LearnerConfig
from services.contracts.records import Reward, RolloutGroup, ScoredGroup
from tests.gpu.conftest import Measure
from tests.gpu.engine_process import EngineProcess, order
from tests.gpu.variants import (
    CAPTURED_GRAPHS,
    CUDA,
    HALF_BILLION,
    TIED_FLOAT32,
    TOLERANCE,
    UNTIED_BFLOAT16,
    UNTIED_FLOAT32,
)
from tests.ppo_learner.builders import start_rank

NUM_STEPS = 4
LOOPS = [
    pytest.param(TIED_FLOAT32, LearnerConfig(lr=1e-3, critic_lr=1e-3), id="tied float32, ZeRO 0"),
    pytest.param(UNTIED_FLOAT32, LearnerConfig(lr=1e-3, critic_lr=1e-3, zero_stage=3), id="untied float32, ZeRO 3"),
    pytest.param(CAPTURED_GRAPHS, LearnerConfig(lr=1e-3, critic_lr=1e-3, zero_stage=2), id="tied bfloat16, ZeRO 2"),
    pytest.param(UNTIED_BFLOAT16, LearnerConfig(lr=1e-3, critic_lr=1e-3, zero_stage=3), id="untied bfloat16, ZeRO 3"),
    pytest.param(HALF_BILLION, LearnerConfig(lr=1e-5, critic_lr=1e-5, zero_stage=2), id="half a billion, ZeRO 2"),
]


@pytest.mark.parametrize(("engine", "learner"), LOOPS, indirect=["engine"])
def test_worker_and_learner_agree_on_the_logprobs_of_every_version(
    engine: EngineProcess, learner: LearnerConfig, measure: Measure
) -> None:
    rank = start_rank(learner, engine.folder, dtype=engine.variant.dtype)
    try:
        for version in range(NUM_STEPS):
            numbers = one_step(engine, rank, version)
            assert numbers["canary error, nats"] <= TOLERANCE[engine.variant.dtype]
            assert numbers["sampler gap, nats"] <= TOLERANCE[engine.variant.dtype]
    finally:
        rank.close()
    for name, number in numbers.items():
        measure(name, number)


def test_the_reward_rises(tmp_path: Path, measure: Measure) -> None:
    engine = EngineProcess(TIED_FLOAT32, TIED_FLOAT32.write(tmp_path))
    try:
        engine.start()
        rank = start_rank(LearnerConfig(lr=3e-3, critic_lr=3e-3), engine.folder, total_steps=15)
        rewards = [one_step(engine, rank, version)["reward"] for version in range(15)]
        rank.close()
    finally:
        engine.close()
    measure("reward at the first step", rewards[0])
    measure("reward at the last step", rewards[-1])
    assert rewards[-1] > rewards[0] + 0.2


def one_step(engine: EngineProcess, rank: Any, version: int) -> dict[str, float]:
    """Publish and load `version`, sample with it, learn; what was measured."""
    started = time.monotonic()
    publication = rank.publish(version)
    published = time.monotonic()
    receipt = engine.load(publication)
    loaded = time.monotonic()
    rows = range(8 if CUDA else 4)
    groups = engine.sample(*(order((5, 6, 7 + row), prompt_id=f"{version}-{row}") for row in rows))
    sampled = time.monotonic()
    report = rank.step([scored(group) for group in groups])
    return {
        "canary error, nats": receipt.canary_error,
        "sampler gap, nats": report.metrics["sampler_gap/mean"],
        "reward": report.metrics["reward/mean"],
        "publish, s": published - started,
        "sync of the worker, s": loaded - published,
        "sample, s": sampled - loaded,
        "learn, s": time.monotonic() - sampled,
    }


def scored(group: RolloutGroup) -> ScoredGroup:
    """Rewarded by the share of sampled tokens that are digits (ids 2 to 11)."""
    rewards = []
    for rollout in group.rollouts:
        sampled = rollout.token_ids[rollout.num_prompt_tokens :]
        rewards.append(Reward(value=sum(2 <= token < 12 for token in sampled) / len(sampled)))
    return ScoredGroup(group=group, rewards=tuple(rewards))
