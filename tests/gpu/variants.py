"""The models that the checks run on, and how far two right computations of them may differ.

It must not know engines or learners. Invariant: the weights of a variant are a function of the seed alone.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from services.contracts.records import Canary, Publication, Rollout
from services.contracts.settings import ModelConfig
from services.transport.disk_weights import DiskWeights
from services.transport.weights import pack
from tests.tiny import tiny_canary, tiny_model, tiny_tokenizer, token_logprobs

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Largest mean difference, in nats, between the logprobs of vLLM and of transformers or the learner."""

Tensors = Iterable[tuple[str, torch.Tensor]]

_versions = itertools.count(1)
_disk = DiskWeights()


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A model in a number format; `shape` overrides the tiny one's, `eager` leaves captured graphs out."""

    name: str
    tied: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    eager: bool = True
    shape: tuple[tuple[str, Any], ...] = (("initializer_range", 0.1),)

    def model(self, seed: int) -> Any:  # Any: transformers is untyped here
        """The weights of `seed`, on the GPU."""
        model = tiny_model(tied=self.tied, seed=seed, **dict(self.shape))
        return model.to(DEVICE, getattr(torch, self.dtype))

    def write(self, folder: Path) -> Path:
        """Write the weights of seed 0 and a tokenizer."""
        self.model(0).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder

    def config(self, folder: Path) -> ModelConfig:
        return ModelConfig(path=str(folder), dtype=self.dtype, max_length=512)


_QWEN2_HALF_BILLION = {
    "vocab_size": 151_936 if CUDA else 4096,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24 if CUDA else 2,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}

TIED_FLOAT32 = Variant(name="tied float32")
UNTIED_FLOAT32 = Variant(name="untied float32", tied=False)
TIED_BFLOAT16 = Variant(name="tied bfloat16", dtype="bfloat16")
UNTIED_BFLOAT16 = Variant(name="untied bfloat16", tied=False, dtype="bfloat16")
CAPTURED_GRAPHS = Variant(name="captured graphs", dtype="bfloat16", eager=False)
HALF_BILLION = Variant(
    name="half a billion",
    dtype="bfloat16",
    eager=False,
    shape=(*_QWEN2_HALF_BILLION.items(), ("initializer_range", 0.02)),
)


def publish(
    variant: Variant,
    *,
    seed: int,
    canary: Canary | None = None,
    change: Callable[[Tensors], Tensors] = lambda tensors: tensors,
) -> Publication:
    """The next version: the weights of `seed`, with `change` made after the canary was taken."""
    model = variant.model(seed)
    manifest, buckets = pack(
        change(model.named_parameters()),
        version=next(_versions),
        dtype=variant.dtype,
        canary=canary or tiny_canary(model, tolerance=TOLERANCE[variant.dtype]),
    )
    return _disk.publish(manifest, buckets)


def mean_error(
    rollouts: Sequence[Rollout], model: Any, *, temperature: float = 1.0, version: int | None = None
) -> float:
    """Between the rollouts' logprobs and those that `model` gives; of the tokens that `version` sampled, or of all."""
    differences = []
    for rollout in rollouts:
        expected = [0.0, *token_logprobs(model, rollout.token_ids, temperature=temperature)]
        for mask, by, found, right in zip(
            rollout.loss_mask, rollout.policy_versions, rollout.logprobs, expected, strict=True
        ):
            if mask and version in (None, by):
                differences.append(abs(found - right))
    return sum(differences) / len(differences)
