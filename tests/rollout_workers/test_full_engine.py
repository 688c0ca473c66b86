"""A real engine all of whose slots are taken by completions that take longer than any deadline of the test."""

from typing import Any

import pytest
import ray
import torch

from services.contracts.records import Publication, SampleRequest
from services.contracts.settings import ModelConfig
from tests.rollout_workers.conftest import ROLLOUT, HostedWorker
from tests.rollout_workers.weights import order, publish
from tests.tiny import tiny_canary, tiny_model, write_tiny_model

EOS = 1
SLOTS = 2
LONGEST = 16_384


@pytest.fixture(scope="module")
def full(host: Any, tmp_path_factory: pytest.TempPathFactory) -> HostedWorker:
    """A worker with few slots, whose completions go on from the keys and values of older weights."""
    folder = write_tiny_model(tmp_path_factory.mktemp("model"), max_position_embeddings=LONGEST)
    settings = {"max_concurrent_sequences": SLOTS, "on_new_weights": "keep", "sync_timeout_s": 10}
    model = ModelConfig(path=str(folder), dtype="float32")
    ray.get(host.start.remote("full", model, ROLLOUT.model_copy(update=settings)), timeout=120)
    return HostedWorker(host, "full", folder)


def endless_weights(worker: HostedWorker) -> Publication:
    """Of a model to which the end of a sequence is never the most likely token."""
    model = tiny_model(seed=1)
    with torch.no_grad():
        model.get_input_embeddings().weight[EOS] = 0.0
    canary = tiny_canary(model, tolerance=1e-5)
    return publish(worker, seed=1, canary=canary, change=lambda tensors: list(model.named_parameters()))


def long_orders() -> list[SampleRequest]:
    """More than there are slots."""
    sampling = {"num_samples": 1, "top_k": 1, "max_completion_tokens": LONGEST}
    return [order(prompt_id=f"0-{row}", **sampling) for row in range(2 * SLOTS)]


async def test_a_probe_of_a_full_engine_waits_for_no_completion(full: HostedWorker) -> None:
    receipt = await full.load_weights(endless_weights(full))

    version, num_ended, _ = await full.host.call_while_full.remote(full.name, long_orders(), SLOTS, "health", ())

    assert (version, num_ended) == (receipt.version, 0)


async def test_new_weights_in_a_full_engine_are_checked_before_a_completion_ends_and_no_more_run_after(
    full: HostedWorker,
) -> None:
    await full.load_weights(endless_weights(full))
    load = ("load_weights", (endless_weights(full),))

    receipt, num_ended, num_running = await full.host.call_while_full.remote(full.name, long_orders(), SLOTS, *load)

    assert receipt.canary_error < 1e-5
    assert (num_ended, num_running) == (0, SLOTS)


async def test_a_probe_of_an_idle_engine_samples_a_token(full: HostedWorker) -> None:
    receipt = await full.load_weights(endless_weights(full))

    assert await full.health() == receipt.version
