"""Mixtures of experts in the real engine, whose weights arrive under the names that they are stored under."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, PretrainedConfig, Qwen3MoeConfig
from transformers.core_model_loading import revert_weight_conversion

from services.contracts.errors import CanaryMismatch
from services.contracts.settings import ModelConfig
from services.transport.disk_weights import DiskWeights
from services.transport.weights import pack
from tests.rollout_workers.conftest import ROLLOUT, HostedWorker, new_host
from tests.rollout_workers.weights import TOLERANCE, largest_error, order
from tests.tiny import TINY_EXPERTS, tiny_canary, tiny_tokenizer

SHAPE: dict[str, Any] = {
    **TINY_EXPERTS,
    "vocab_size": len(tiny_tokenizer()),
    "hidden_size": 64,
    "intermediate_size": 128,
}
CONFIGS = {
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=4),
    "qwen3_moe": Qwen3MoeConfig(**SHAPE, num_experts=4, moe_intermediate_size=64, head_dim=32),
}


def experts(config: PretrainedConfig, *, seed: int) -> Any:  # Any: transformers
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


def stored(model: Any) -> list[tuple[str, torch.Tensor]]:
    """The weights under their stored names, as the learner publishes them."""
    return [
        named
        for name, tensor in model.named_parameters()
        for named in revert_weight_conversion(model, {name: tensor.detach()}).items()
    ]


@pytest.fixture(scope="module")
def host_of_experts(host: Any) -> Iterator[Any]:
    """A process of its own: vLLM makes the group that experts need only where the first model has some."""
    process = new_host()
    yield process
    ray.kill(process)


@pytest.mark.parametrize("name", CONFIGS)
async def test_experts_are_loaded_where_they_belong(name: str, host_of_experts: Any, tmp_path: Path) -> None:
    experts(CONFIGS[name], seed=0).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    await host_of_experts.start.remote(name, ModelConfig(path=str(tmp_path), dtype="float32"), ROLLOUT)
    worker, disk = HostedWorker(host_of_experts, name, tmp_path), DiskWeights()

    for version in (1, 2):
        model = experts(CONFIGS[name], seed=version)
        canary = tiny_canary(model, tolerance=TOLERANCE["float32"])
        packed = pack(stored(model), version=version, dtype="float32", canary=canary)
        await worker.load_weights(disk.publish(*packed))
        group = await worker.sample(order())
        assert max(largest_error(rollout, model) for rollout in group.rollouts) < 1e-4

    weights = dict(stored(model))
    first = next(name for name in weights if "layers.1" in name and "experts.0" in name)
    other = first.replace("experts.0", "experts.1")
    weights[first], weights[other] = weights[other], weights[first]
    swapped = pack(list(weights.items()), version=3, dtype="float32", canary=canary)
    with pytest.raises(CanaryMismatch):
        await worker.load_weights(disk.publish(*swapped))
