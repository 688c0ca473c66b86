"""Weights from GPU to GPU: by NCCL between two, by CUDA IPC within one, and worker and learner in turns on one.

In a rehearsal gloo stands for both, and sleep frees nothing.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ppo_learner.config import LearnerConfig
from services.contracts.errors import CanaryMismatch
from services.contracts.records import Publication, Reward, ScoredGroup
from services.transport.device_weights import DeviceSender, publish_on_device
from services.transport.transports import DEVICE_TRANSPORTS
from tests.gpu.conftest import Measure
from tests.gpu.engine_process import EngineProcess, order
from tests.gpu.variants import CUDA, DEVICE, HALF_BILLION, TIED_BFLOAT16, TOLERANCE, Variant, mean_error
from tests.ppo_learner.builders import start_rank
from tests.tiny import tiny_canary
from tests.transport.gloo_groups import GLOO

NUM_GPUS = torch.cuda.device_count()
DEVICE_TRANSPORTS["gloo"] = GLOO

WAYS = [
    pytest.param(
        "nccl",
        marks=pytest.mark.skipif(CUDA and NUM_GPUS < 2, reason="needs two GPUs: NCCL takes one process of each"),
    ),
    pytest.param("ipc", marks=pytest.mark.skipif(not CUDA, reason="needs a GPU: a CPU has no CUDA IPC to rehearse")),
]


def here(way: str) -> str:
    return way if CUDA else "gloo"


@pytest.fixture(params=[TIED_BFLOAT16, HALF_BILLION], ids=lambda variant: variant.name)
def variant(request: pytest.FixtureRequest) -> Variant:
    chosen: Variant = request.param
    return chosen


@pytest.fixture
def receiver(variant: Variant, way: str, tmp_path: Path) -> Iterator[EngineProcess]:
    gpu = 1 if way == "nccl" and CUDA else None
    process = EngineProcess(variant, variant.write(tmp_path), transport=here(way), colocate=way == "ipc", gpu=gpu)
    try:
        process.start()
        yield process
    finally:
        process.close()


def publish(sender: DeviceSender, variant: Variant, *, version: int, upside_down: bool = False) -> Publication:
    """The weights of seed `version`, one of them changed after the canary was taken where that is asked for."""
    model = variant.model(version)
    tensors = [
        (name, tensor.flip(0) if upside_down and "embed_tokens" in name else tensor)
        for name, tensor in model.named_parameters()
    ]
    canary = tiny_canary(model, tolerance=TOLERANCE[variant.dtype])
    return publish_on_device(sender, tensors, version=version, dtype=variant.dtype, canary=canary)


@pytest.mark.parametrize("way", WAYS)
def test_what_crosses_is_sampled_and_a_wrong_tensor_refused(
    receiver: EngineProcess, variant: Variant, way: str, measure: Measure
) -> None:
    device = torch.device("cuda", 0) if CUDA else DEVICE
    sender = DEVICE_TRANSPORTS[here(way)].sender(device, "127.0.0.1")
    for version in (1, 2, 3):
        receipt = receiver.load(publish(sender, variant, version=version))
        (group,) = receiver.sample(order())
        assert receipt.canary_error <= TOLERANCE[variant.dtype]
        assert mean_error(group.rollouts, variant.model(version)) <= TOLERANCE[variant.dtype]

    with pytest.raises(CanaryMismatch):
        receiver.load(publish(sender, variant, version=4, upside_down=True))
    receiver.load(publish(sender, variant, version=5))
    measure(f"{way}: receive and load while the engine stands still, s", receipt.load_s)


@pytest.mark.parametrize("transport", ["ipc", "disk"])
def test_worker_and_learner_take_turns_on_one_gpu(tmp_path: Path, transport: str, measure: Measure) -> None:
    transport = transport if CUDA or transport == "disk" else "gloo"
    variant = TIED_BFLOAT16
    worker = EngineProcess(variant, variant.write(tmp_path), transport=transport, colocate=True)
    try:
        worker.start()
        before = torch.cuda.mem_get_info()[0] if CUDA else 0
        worker.sleep()
        freed = torch.cuda.mem_get_info()[0] - before if CUDA else 0
        rank = start_rank(LearnerConfig(lr=1e-3, critic_lr=1e-3), worker.folder, dtype="bfloat16", transport=transport)
        for version in range(3):
            publication = rank.publish(version)
            assert publication
            receipt = worker.load(publication)
            groups = worker.sample(*(order(prompt_id=f"0-{row}") for row in range(4)))
            assert receipt.canary_error <= TOLERANCE[variant.dtype]
            worker.sleep()
            rewards = [tuple(Reward(value=float(index % 2)) for index in range(8)) for _ in groups]
            scored = [ScoredGroup(group=one, rewards=given) for one, given in zip(groups, rewards, strict=True)]
            gap = rank.step(scored).metrics["sampler_gap/mean"]
            assert gap <= TOLERANCE[variant.dtype]
        rank.close()
    finally:
        worker.close()
    measure(f"{transport}: freed by sleep, GiB", freed / 2**30)
    if CUDA:
        # A fifth of the GPU was the worker's; its weights here are small, so nearly all of that are keys and values.
        assert freed > 0.15 * torch.cuda.mem_get_info()[1]
