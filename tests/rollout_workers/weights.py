"""Publications of tiny models, and what is sampled held against the model that should have sampled it."""

import itertools
from array import array
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from rollout_workers.config import RolloutConfig
from services.contracts.records import Canary, Prompt, Publication, Rollout, SampleRequest, Sampling
from services.transport.disk_weights import DiskWeights
from services.transport.weights import pack
from tests.rollout_workers.conftest import HostedWorker
from tests.tiny import tiny_canary, tiny_model, token_logprobs

_versions = itertools.count(1)
_disk = DiskWeights()

TOLERANCE = {"float32": 1e-5, "bfloat16": 0.2}
"""Largest mean difference of logprobs; in bfloat16 these models' logits, of size 10, are known to about 0.04."""


@cache
def model_of(worker: HostedWorker, seed: int) -> Any:
    """The model that `publish` gives to this worker for `seed`, in the worker's number format."""
    return tiny_model(tied=worker.tied, seed=seed).to(getattr(torch, worker.dtype))


def publish(
    worker: HostedWorker,
    *,
    seed: int,
    version: int | None = None,
    canary: Canary | None = None,
    change: Any = lambda tensors: tensors,  # Any: a function from named tensors to named tensors
) -> Publication:
    """The next version for any worker: the weights of `seed`, with `change` made after the canary was taken."""
    model = model_of(worker, seed)
    manifest, buckets = pack(
        change(list(model.named_parameters())),
        version=next(_versions) if version is None else version,
        dtype=worker.dtype,
        canary=canary or tiny_canary(model, tolerance=TOLERANCE[worker.dtype]),
    )
    return _disk.publish(manifest, buckets)


def order(
    token_ids: Sequence[int] = (5, 6, 7),
    *,
    prompt_id: str = "prompt",
    rollout: RolloutConfig | None = None,
    **changes: Any,
) -> SampleRequest:
    sampling: dict[str, Any] = {"num_samples": 4, "max_completion_tokens": 24, "seed": 3} | changes
    prompt = Prompt(id=prompt_id, text="", token_ids=array("i", token_ids))
    return SampleRequest(prompt=prompt, sampling=Sampling(**sampling))


def largest_error(rollout: Rollout, model: Any, *, temperature: float = 1.0) -> float:
    """Between the rollout's logprobs and those that `model` gives its sampled tokens."""
    return max(errors(rollout, model, temperature=temperature))


def errors(rollout: Rollout, model: Any, *, temperature: float = 1.0) -> list[float]:
    """The same, token by token."""
    expected = token_logprobs(model, rollout.token_ids, temperature=temperature)[rollout.num_prompt_tokens - 1 :]
    found = rollout.logprobs[rollout.num_prompt_tokens :]
    sampled = rollout.loss_mask[rollout.num_prompt_tokens :]
    return [abs(ours - theirs) for ours, theirs, is_ours in zip(found, expected, sampled, strict=True) if is_ours]


def files_of(publication: Publication) -> list[Path]:
    return [Path(str(location)) for location in publication.locations]
