"""Weights that the real engine receives by itself, through vLLM's weight-transfer interface, and the engine's sleep.

Gloo stands for NCCL, and on a CPU sleep frees no memory; everything else is what runs on a GPU.
"""

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import pytest
import ray
import torch

from services.contracts.errors import CanaryMismatch, ChecksumMismatch, WeightSyncError
from services.contracts.records import NOT_SAMPLED, Publication
from services.contracts.settings import ModelConfig
from services.transport.device_weights import publish_on_device
from tests.rollout_workers.conftest import ROLLOUT, HostedWorker
from tests.rollout_workers.weights import largest_error, model_of, order, publish
from tests.tiny import tiny_canary
from tests.transport.gloo_groups import GLOO

_versions = itertools.count(1)
SENDER = GLOO.sender(torch.device("cpu"), "127.0.0.1")


@pytest.fixture
def receiver(host: Any, worker: HostedWorker, started: dict[str, HostedWorker]) -> HostedWorker:
    """A worker whose weights come by broadcast; started once for all tests."""
    name = "by gloo"
    if name not in started:
        model = ModelConfig(path=str(worker.folder), dtype="float32")
        ray.get(host.start.remote(name, model, ROLLOUT, "gloo"), timeout=120)
        started[name] = HostedWorker(host, name, worker.folder)
    return started[name]


def broadcast(receiver: HostedWorker, *, seed: int, change: Any = lambda tensors: tensors) -> Publication:
    model = model_of(receiver, seed)
    return publish_on_device(
        SENDER,
        change(list(model.named_parameters())),
        version=next(_versions),
        dtype="float32",
        canary=tiny_canary(model, tolerance=1e-5),
    )


async def test_what_was_broadcast_is_sampled_version_after_version(receiver: HostedWorker) -> None:
    for seed in (1, 2, 3):
        publication = broadcast(receiver, seed=seed)
        version = publication.manifest.version
        receipt = await receiver.load_weights(publication)
        group = await receiver.sample(order())

        assert receipt.version == version and receipt.canary_error < 1e-5
        assert set(group.rollouts[0].policy_versions) == {NOT_SAMPLED, version}
        assert max(largest_error(rollout, model_of(receiver, seed)) for rollout in group.rollouts) < 1e-5


def with_an_unknown_tensor(tensors: Any) -> Any:
    return [*tensors, ("model.layers.7.mlp.gate_proj.weight", torch.zeros(128, 64))]


def with_noise(tensors: Any) -> Any:
    return [(name, tensor * 1.5 if name.endswith("down_proj.weight") else tensor) for name, tensor in tensors]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda tensors: tensors[:-1], WeightSyncError),
        (with_an_unknown_tensor, WeightSyncError),
        (with_noise, CanaryMismatch),
    ],
    ids=["one tensor missing", "one tensor too many", "one tensor wrong"],
)
async def test_what_is_not_the_learners_model_is_refused_until_a_good_broadcast(
    receiver: HostedWorker, change: Any, error: type[Exception]
) -> None:
    await receiver.load_weights(broadcast(receiver, seed=1))

    with pytest.raises(error):
        await receiver.load_weights(broadcast(receiver, seed=2, change=change))
    with pytest.raises(WeightSyncError, match="nothing is served since"):
        await receiver.sample(order())

    await receiver.load_weights(broadcast(receiver, seed=2))
    group = await receiver.sample(order())
    assert max(largest_error(rollout, model_of(receiver, 2)) for rollout in group.rollouts) < 1e-5


async def test_bytes_that_changed_on_the_way_are_refused(receiver: HostedWorker) -> None:
    publication = broadcast(receiver, seed=1)
    manifest = replace(publication.manifest, checksums=("0" * 16,))

    with pytest.raises(ChecksumMismatch, match=f"version {manifest.version}: bucket 0"):
        await receiver.load_weights(replace(publication, manifest=manifest))

    await receiver.load_weights(publication)


async def test_weights_that_do_not_come_leave_the_worker_ready_for_the_next(receiver: HostedWorker) -> None:
    gone = broadcast(receiver, seed=1)
    _, newest = broadcast(receiver, seed=2), broadcast(receiver, seed=2)

    with pytest.raises(WeightSyncError, match="no longer kept"):
        await receiver.load_weights(gone)

    await receiver.load_weights(newest)
    group = await receiver.sample(order())
    assert max(largest_error(rollout, model_of(receiver, 2)) for rollout in group.rollouts) < 1e-5


async def test_a_worker_that_sleeps_samples_nothing_until_new_weights_wake_it(worker: HostedWorker) -> None:
    await worker.load_weights(publish(worker, seed=1))
    await worker._call("sleep")
    await worker._call("sleep")
    sampling = asyncio.create_task(worker.sample(order()))
    await worker.health()  # Ordered after the sample: the worker has it by now, and answers all the same.
    assert not sampling.done()

    receipt = await worker.load_weights(publish(worker, seed=2))

    group = await sampling
    assert set(group.rollouts[0].policy_versions) == {NOT_SAMPLED, receipt.version}
    assert max(largest_error(rollout, model_of(worker, 2)) for rollout in group.rollouts) < 1e-5
