"""Adapters in the real engine: what is trained beside frozen weights is sampled from as one model."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from ppo_learner.config import LearnerConfig
from services.contracts.settings import ModelConfig
from tests.ppo_learner.builders import random_groups, start_rank
from tests.rollout_workers.conftest import ROLLOUT, HostedWorker
from tests.rollout_workers.weights import largest_error, order
from tests.tiny import write_tiny_model


@pytest.mark.parametrize("quantise", [None, "4bit"])
async def test_a_worker_samples_from_the_adapters_that_a_learner_published(
    quantise: str | None, host: Any, tmp_path: Path
) -> None:
    folder = write_tiny_model(tmp_path / "model", tied=False)
    name = f"adapters {quantise}"
    await host.start.remote(name, ModelConfig(path=str(folder), dtype="float32"), ROLLOUT)
    worker = HostedWorker(host, name, folder, tied=False)
    config = {"algorithm": "grpo", "lr": 1e-2, "lora": {"rank": 4, "quantise": quantise}}
    rank = start_rank(LearnerConfig.model_validate(config), folder)
    before = AutoModelForCausalLM.from_pretrained(folder)
    try:
        for version in (1, 2):
            rank.step(random_groups(version))
            publication = rank.publish(version)
            assert publication is not None
            receipt = await worker.load_weights(publication)
            assert receipt.version == version
            rank.export(tmp_path / f"export_{version}")
            merged = AutoModelForCausalLM.from_pretrained(tmp_path / f"export_{version}")
            rollouts = (await worker.sample(order())).rollouts
            assert max(largest_error(rollout, merged) for rollout in rollouts) < 1e-4
            assert min(largest_error(rollout, before) for rollout in rollouts) > 1e-2
            before = merged
    finally:
        rank.close()
