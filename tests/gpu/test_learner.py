"""A learner rank on a GPU: the same step at every ZeRO stage, resumed, and with less memory."""

import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import pytest
import torch

from ppo_learner.config import LearnerConfig
from ppo_learner.learner import LearnerRank
from services.transport.transports import TRANSPORTS
from services.transport.weights import unpack
from tests.gpu.conftest import Measure
from tests.gpu.variants import CUDA, DEVICE, HALF_BILLION, TOLERANCE, UNTIED_FLOAT32
from tests.ppo_learner.builders import random_groups, same_update, start_rank, weights_of

PPO = LearnerConfig(lr=1e-3, critic_lr=1e-3, num_minibatches=2, kl_coefficient=0.01)
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return UNTIED_FLOAT32.write(tmp_path_factory.mktemp("model"))


def start(folder: Path, dtype: Literal["float32", "bfloat16"] = "float32", **settings: object) -> LearnerRank:
    return start_rank(PPO.model_copy(update=settings), folder, dtype=dtype)


def after_one_step(folder: Path, **settings: object) -> tuple[Weights, Weights]:
    """The weights before and after."""
    rank = start(folder, **settings)
    before = weights_of(rank)
    rank.step(random_groups(0))
    after = weights_of(rank)
    rank.close()
    return before, after


@pytest.fixture
def memory() -> Iterator[None]:
    """Counts the GPU's memory from here on."""
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_moves_every_network_on_the_gpu(
    folder: Path, dtype: Literal["float32", "bfloat16"], zero_stage: int
) -> None:
    rank = start(folder, dtype, zero_stage=zero_stage)
    before = weights_of(rank)
    report = rank.step(random_groups(0))
    after = weights_of(rank)
    rank.close()

    assert {tensor.device.type for tensor in after.values()} == {DEVICE.type}
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    moved = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert moved == {"policy", "critic"}
    assert report.metrics["updates"] == 2 and report.metrics["updates_skipped"] == 0


@pytest.mark.parametrize("settings", [{"zero_stage": 2}, {"zero_stage": 3}, {"gradient_checkpointing": True}], ids=str)
def test_a_step_is_the_same_however_memory_is_saved(folder: Path, settings: dict[str, object]) -> None:
    before, plain = after_one_step(folder)
    _, saving = after_one_step(folder, **settings)

    assert same_update(before, plain, saving)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_gradient_norms_are_read_when_the_gradients_have_reached_the_machines_memory(
    folder: Path, zero_stage: int
) -> None:
    rank = start(folder, zero_stage=zero_stage, offload="optimizer", num_minibatches=1)
    reports = [rank.step(random_groups(step)).metrics for step in range(3)]
    rank.close()
    for metrics in reports:
        parts = [norm for name, norm in metrics.items() if name.startswith("gradient_norm/policy/")]
        assert math.hypot(*parts) == pytest.approx(metrics["gradient_norm/policy"], rel=1e-3)


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_a_resumed_rank_takes_the_next_step_as_if_it_had_not_stopped(
    folder: Path, tmp_path: Path, zero_stage: int
) -> None:
    rank = start(folder, zero_stage=zero_stage)
    rank.step(random_groups(0))
    rank.save(tmp_path / "step_1")
    saved = weights_of(rank)
    rank.step(random_groups(1))
    expected = weights_of(rank)
    rank.close()

    resumed = start(folder, zero_stage=zero_stage)
    resumed.load(tmp_path / "step_1")
    report = resumed.step(random_groups(1))
    found = weights_of(resumed)
    resumed.close()

    assert report.step == 2
    assert same_update(saved, expected, found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_published_are_the_trained_weights(folder: Path, dtype: Literal["float32", "bfloat16"]) -> None:
    rank = start(folder, dtype, zero_stage=2)
    rank.step(random_groups(0))
    trained = weights_of(rank)
    publication = rank.publish(1)
    assert publication
    sent = dict(unpack(publication.manifest, TRANSPORTS["disk"]().fetch(publication, timeout_s=5)))
    rank.close()

    assert {entry.dtype for entry in publication.manifest.tensors} == {dtype}
    for name, tensor in sent.items():
        assert torch.equal(tensor, trained[f"policy.language_model.{name}"].cpu())


@pytest.mark.skipif(find_spec("flash_attn") is None, reason="needs the package flash_attn, which is not installed")
def test_flash_attention_gives_the_same_logprobs(folder: Path) -> None:
    canaries = []
    for attention in ("sdpa", "flash_attention_2"):
        rank = start(folder, "bfloat16", attention=attention)
        publication = rank.publish(0)
        rank.close()
        assert publication
        canaries.append(torch.tensor([list(row) for row in publication.manifest.canary.logprobs]))

    assert float((canaries[0] - canaries[1]).abs().mean()) <= TOLERANCE["bfloat16"]


def test_a_model_of_half_a_billion_parameters_is_trained(tmp_path: Path, memory: None, measure: Measure) -> None:
    rank = start(HALF_BILLION.write(tmp_path), "bfloat16", zero_stage=2, gradient_checkpointing=True)
    rank.step(random_groups(0))
    report = rank.step(random_groups(1, num_groups=16 if CUDA else 1, longest=256 if CUDA else 24))
    rank.close()

    assert report.metrics["updates_skipped"] == 0
    measure("learner, tokens/s", report.metrics["learner/tokens_per_second"])
    measure("peak memory, GiB", torch.cuda.max_memory_allocated() / 2**30 if CUDA else 0.0)
