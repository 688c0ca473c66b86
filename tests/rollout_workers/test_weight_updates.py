"""New weights in the real engine: what is served after them, and what is refused."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import ray
import torch

from services.contracts.errors import CanaryMismatch, ChecksumMismatch, VersionMismatch, WeightSyncError
from services.contracts.records import NOT_SAMPLED, Rollout
from services.contracts.settings import ModelConfig
from tests.rollout_workers.conftest import ROLLOUT, VARIANTS, HostedWorker
from tests.rollout_workers.weights import TOLERANCE, errors, files_of, largest_error, model_of, order, publish
from tests.tiny import write_tiny_model

Tensors = list[tuple[str, torch.Tensor]]


def mean_error(rollouts: tuple[Rollout, ...], model: Any) -> float:
    differences = [error for rollout in rollouts for error in errors(rollout, model)]
    return sum(differences) / len(differences)


def with_noise_in_one_tensor(tensors: Tensors) -> Tensors:
    changed = "model.layers.1.mlp.down_proj.weight"
    return [(name, tensor * 1.5 if name == changed else tensor) for name, tensor in tensors]


def without_one_tensor(tensors: Tensors) -> Tensors:
    return [(name, tensor) for name, tensor in tensors if name != "model.layers.0.self_attn.k_proj.weight"]


def with_one_wrong_shape(tensors: Tensors) -> Tensors:
    return [(name, tensor[:-1] if name == "model.norm.weight" else tensor) for name, tensor in tensors]


def with_an_unknown_tensor(tensors: Tensors) -> Tensors:
    return [*tensors, ("model.layers.7.mlp.gate_proj.weight", torch.zeros(128, 64))]


@pytest.mark.parametrize("worker", sorted(VARIANTS), indirect=True)
async def test_after_each_update_the_new_model_is_sampled(worker: HostedWorker) -> None:
    for seed in (1, 2, 3):
        receipt = await worker.load_weights(publish(worker, seed=seed))
        group = await worker.sample(order(num_samples=8))

        assert receipt.canary_error < TOLERANCE[worker.dtype]
        assert mean_error(group.rollouts, model_of(worker, seed)) < TOLERANCE[worker.dtype]
        assert mean_error(group.rollouts, model_of(worker, seed + 1)) > 1.0
        assert set(group.rollouts[0].policy_versions) == {NOT_SAMPLED, receipt.version}


async def test_a_worker_samples_nothing_before_its_first_weights(host: Any, worker: HostedWorker) -> None:
    await host.start.remote("new", ModelConfig(path=str(worker.folder), dtype="float32"), ROLLOUT)
    new = HostedWorker(host, "new", worker.folder)

    with pytest.raises(WeightSyncError, match="before its first weights"):
        await new.sample(order())

    await new.load_weights(publish(worker, seed=1, version=0))
    assert (await new.sample(order())).lowest_policy_version == 0


@pytest.mark.parametrize(
    "change", [with_noise_in_one_tensor, without_one_tensor, with_one_wrong_shape, with_an_unknown_tensor]
)
async def test_a_model_that_is_not_the_learners_is_refused_until_a_good_load(worker: HostedWorker, change: Any) -> None:
    await worker.load_weights(publish(worker, seed=1))

    with pytest.raises(WeightSyncError):
        await worker.load_weights(publish(worker, seed=2, change=change))
    with pytest.raises(WeightSyncError, match="nothing is served since"):
        await worker.sample(order())

    receipt = await worker.load_weights(publish(worker, seed=2))
    group = await worker.sample(order())
    assert set(group.rollouts[0].policy_versions) == {NOT_SAMPLED, receipt.version}
    assert max(largest_error(rollout, model_of(worker, 2)) for rollout in group.rollouts) < 1e-5


async def test_the_canary_names_the_version_and_the_difference(worker: HostedWorker) -> None:
    publication = publish(worker, seed=2, change=with_noise_in_one_tensor)

    with pytest.raises(CanaryMismatch, match=rf"version {publication.manifest.version}: .* on average"):
        await worker.load_weights(publication)


async def test_bytes_that_changed_on_the_way_are_refused(worker: HostedWorker) -> None:
    await worker.load_weights(publish(worker, seed=1))
    publication = publish(worker, seed=2)
    (file,) = files_of(publication)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)

    with pytest.raises(ChecksumMismatch, match="bucket 0"):
        await worker.load_weights(publication)
    with pytest.raises(WeightSyncError, match="nothing is served since"):
        await worker.sample(order())


async def test_weights_of_another_transport_are_refused(worker: HostedWorker) -> None:
    with pytest.raises(WeightSyncError, match=r"weights\.transport"):
        await worker.load_weights(replace(publish(worker, seed=1), transport="carrier_pigeon"))


async def test_an_older_version_is_refused_and_the_newer_one_still_served(worker: HostedWorker) -> None:
    older = publish(worker, seed=1)
    newer = publish(worker, seed=2)
    await worker.load_weights(newer)

    with pytest.raises(VersionMismatch):
        await worker.load_weights(older)

    group = await worker.sample(order())
    assert max(largest_error(rollout, model_of(worker, 2)) for rollout in group.rollouts) < 1e-5


async def test_the_same_version_may_be_loaded_again(worker: HostedWorker) -> None:
    publication = publish(worker, seed=2)

    receipts = [await worker.load_weights(publication) for _ in range(2)]

    assert receipts[0].version == receipts[1].version


def test_without_the_repacking_the_tied_head_stays_stale_and_the_canary_tells(host: Any, worker: HostedWorker) -> None:
    model = ModelConfig(path=str(worker.folder), dtype="float32")

    with pytest.raises(CanaryMismatch):
        ray.get(host.load_with_stale_head.remote(model, publish(worker, seed=2)), timeout=60)


async def test_keys_and_values_of_a_long_prompt_are_not_kept_across_an_update(worker: HostedWorker) -> None:
    prompt = [2 + index * 7 % 40 for index in range(300)]
    for seed in (1, 2):
        await worker.load_weights(publish(worker, seed=seed))
        groups = await asyncio.gather(*(worker.sample(order(prompt, prompt_id=f"0-{row}")) for row in range(3)))

        rollouts = [rollout for group in groups for rollout in group.rollouts]
        assert max(largest_error(rollout, model_of(worker, seed)) for rollout in rollouts) < 1e-4


async def test_completions_under_way_go_on_with_the_new_weights_and_each_token_says_which_sampled_it(
    host: Any, worker: HostedWorker
) -> None:
    old = await worker.load_weights(publish(worker, seed=1))
    new = publish(worker, seed=2)
    orders = [order(prompt_id=f"0-{row}", num_samples=16, max_completion_tokens=400) for row in range(4)]

    groups = await host.load_while_sampling.remote(worker.name, orders, new)

    rollouts = [rollout for group in groups for rollout in group.rollouts]
    versions = [old.version, new.manifest.version]
    mixed = [rollout for rollout in rollouts if set(rollout.policy_versions) == {NOT_SAMPLED, *versions}]
    assert mixed
    for rollout in rollouts:
        sampled_by = rollout.policy_versions[rollout.num_prompt_tokens :]
        assert list(sampled_by) == sorted(sampled_by)
        for version, seed in zip(versions, (1, 2), strict=True):
            of_version = [
                error
                for error, by in zip(errors(rollout, model_of(worker, seed)), sampled_by, strict=True)
                if by == version
            ]
            assert max(of_version, default=0.0) < 2e-5


async def test_completions_that_keep_their_cache_go_on_from_keys_and_values_of_the_old_weights(
    host: Any, worker: HostedWorker
) -> None:
    keeping = ROLLOUT.model_copy(update={"on_new_weights": "keep"})
    await host.start.remote("keeping", ModelConfig(path=str(worker.folder), dtype="float32"), keeping)
    kept = HostedWorker(host, "keeping", worker.folder)
    old = await kept.load_weights(publish(kept, seed=1))
    new = publish(kept, seed=2)
    orders = [order(prompt_id=f"0-{row}", num_samples=16, max_completion_tokens=400) for row in range(4)]

    groups = await host.load_while_sampling.remote(kept.name, orders, new)

    of_version: dict[int, list[float]] = {old.version: [], new.manifest.version: []}
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        sampled_by = rollout.policy_versions[rollout.num_prompt_tokens :]
        for version, seed in zip(of_version, (1, 2), strict=True):
            by_token = zip(errors(rollout, model_of(kept, seed)), sampled_by, strict=True)
            of_version[version] += [error for error, by in by_token if by == version]
    assert max(of_version[old.version]) < 2e-5
    assert max(of_version[new.manifest.version]) > 1e-2
    fresh = await kept.sample(order(num_samples=4))
    assert max(largest_error(rollout, model_of(kept, 2)) for rollout in fresh.rollouts) < 2e-5


async def test_a_refused_update_ends_the_completions_under_way(host: Any, worker: HostedWorker) -> None:
    await worker.load_weights(publish(worker, seed=1))
    bad = publish(worker, seed=2, change=with_noise_in_one_tensor)
    orders = [order(prompt_id=f"0-{row}", num_samples=16, max_completion_tokens=400) for row in range(2)]

    outcomes = await host.load_while_sampling.remote(worker.name, orders, bad)

    assert [type(outcome) for outcome in outcomes] == [CanaryMismatch, CanaryMismatch]


def test_another_models_folder_is_told_as_a_users_mistake(host: Any, tmp_path: Any) -> None:
    folder = write_tiny_model(tmp_path)
    (folder / "config.json").unlink()

    with pytest.raises(ValueError, match="cannot serve"):
        ray.get(host.start.remote("broken", ModelConfig(path=str(folder), dtype="float32"), ROLLOUT), timeout=60)
