"""The policy leaves the learner: packed for the rollout workers with a canary, or written as a Hugging Face folder.

It must not know how bytes travel. Invariants: names are the Hugging Face ones, tied weights go once, and nothing of a
critic or value head goes at all, and adapters are merged. Every function is a collective; only rank 0 receives or
writes anything.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppo_learner.batching import batch_demonstrations, collate
from ppo_learner.engine import Engine
from ppo_learner.lora import ADAPTER_FOLDER, is_adapter, merged, write_adapter
from ppo_learner.models import LANGUAGE_MODEL, load_tokenizer
from ppo_learner.ranks import Ranks
from services.contracts.errors import UserError
from services.contracts.interfaces import WeightTransport
from services.contracts.records import Canary, Demonstration, Publication
from services.contracts.settings import ModelConfig
from services.transport.device_weights import DeviceSender, publish_on_device
from services.transport.transports import DEVICE_TRANSPORTS, TRANSPORTS, transport_names
from services.transport.weights import pack

CANARY_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest mean logprob error of a correct load. The two kernels agree to 1e-6 in float32, and to their rounding in
bfloat16 (8 bits of mantissa, so up to 0.03 on a logit of 8); a wrong tensor is off by 0.5 and more."""

AVERAGED = "_ema"
"""What stands behind the name of an export of averaged weights."""


def make_transport(
    name: str, ranks: Ranks, *, host: str, folder: Path | None = None
) -> WeightTransport | DeviceSender | None:
    """The transport that rank 0 publishes through, and no other rank.

    Args:
        host: an address at which workers reach rank 0's machine.
        folder: where a transport of files puts them; by default in that machine's memory.

    Raises:
        UserError: a name there is not, or a transport that needs a GPU where there is none.
    """
    if name not in transport_names():
        raise UserError(f"weights.transport {name!r} does not exist; choose one of {', '.join(transport_names())}")
    if not ranks.is_first:
        return None
    return TRANSPORTS[name](folder) if name in TRANSPORTS else DEVICE_TRANSPORTS[name].sender(ranks.device, host)


def publish_policy(
    policy: Engine,
    model: ModelConfig,
    ranks: Ranks,
    transport: WeightTransport | DeviceSender | None,
    *,
    version: int,
    canary_sequences: Sequence[array[int]],
) -> Publication | None:
    """Make the present weights available as `version`. Every rank calls it; rank 0 receives the publication."""
    canary = Canary(
        sequences=tuple(canary_sequences),
        logprobs=canary_logprobs(policy, ranks, canary_sequences),
        tolerance=CANARY_TOLERANCE[model.dtype],
    )
    if transport is None:
        for _ in _parameters(policy):
            pass  # Takes part in gathering each weight.
        return None
    if isinstance(transport, DeviceSender):
        return publish_on_device(transport, _parameters(policy), version=version, dtype=model.dtype, canary=canary)
    manifest, buckets = pack(_parameters(policy), version=version, dtype=model.dtype, canary=canary)
    return transport.publish(manifest, buckets)


def default_canary(vocabulary_size: int) -> tuple[array[int], ...]:
    """Four sequences of 24 token ids, always the same for a vocabulary of this size."""
    draw = random.Random(f"canary {vocabulary_size}")
    # A vocabulary's tail may be padding, which engines refuse as input.
    known = max(vocabulary_size * 3 // 4, 1)
    return tuple(array("i", (draw.randrange(known) for _ in range(24))) for _ in range(4))


def _unquantised(network: Any) -> Any:  # Any: transformers
    """What saves whole weights and their configuration: a shape without weights where the network's are in 4 bits."""
    if not hasattr(network.config, "quantization_config"):
        return network
    config = deepcopy(network.config)
    del config.quantization_config
    with torch.device("meta"):
        return type(network)(config)


def _collect(
    read: Callable[[], Iterator[tuple[str, Tensor]] | None], module: torch.nn.Module, prefix: str, *, keep: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Merged weights and adapters below `prefix`; nothing where `read` gives none, or they are not to be kept."""
    weights = _below(prefix, merged(read() or (), module))
    adapters = ((name, tensor) for name, tensor in _below(prefix, read() or ()) if is_adapter(name))
    kept = [{name: tensor.cpu().clone() for name, tensor in some if keep} for some in (weights, adapters)]
    return kept[0], kept[1]


@torch.no_grad()
def canary_logprobs(
    policy: Engine, ranks: Ranks, sequences: Sequence[array[int]], *, packed: bool = False
) -> tuple[array[float], ...]:
    """For each sequence the logprobs of all its tokens but the first, at temperature 1. Every rank calls it.

    Args:
        packed: whether the sequences stand in one row.
    """
    if not sequences:
        return ()
    whole = [Demonstration(token_ids=ids, loss_mask=array("b", [1] * len(ids))) for ids in sequences]
    batch = batch_demonstrations(whole)
    micro_batch = collate(batch, range(len(sequences)), ranks.device, packed=packed)
    logprobs: Tensor = policy(micro_batch, temperature=1.0, entropy=False)[0]
    return tuple(array("f", logprobs[begin:end].tolist()) for begin, end in pairwise(batch.action_offsets.tolist()))


def export_network(
    engine: Engine,
    network: torch.nn.Module,
    model: ModelConfig,
    ranks: Ranks,
    folder: Path,
    *,
    prefix: str = LANGUAGE_MODEL,
) -> None:
    """Write weights, configuration and tokenizer so that transformers and vLLM load them. Every rank calls it.

    A policy's adapters are merged, and lie by themselves in `ADAPTER_FOLDER` beside. Where a moving average of the
    weights is kept, it is written likewise to a folder of that name with `AVERAGED` behind it.

    Args:
        network: the Hugging Face part of what the engine trains.
        prefix: of its parameters' names there.
    """
    sources = {folder: engine.full_parameters, folder.with_name(f"{folder.name}{AVERAGED}"): engine.averaged_parameters}
    for target, read in sources.items():
        weights, adapter = _collect(read, engine.module, prefix, keep=ranks.is_first)
        if not weights:
            continue
        _unquantised(network).save_pretrained(target, state_dict=weights)
        load_tokenizer(model).save_pretrained(target)
        if adapter and prefix == LANGUAGE_MODEL:
            write_adapter(adapter, network, model.path, target / ADAPTER_FOLDER)
    ranks.wait()  # No deadline: their group has one, collective_timeout_s.


def _parameters(engine: Engine, prefix: str = LANGUAGE_MODEL) -> Iterator[tuple[str, Tensor]]:
    """The weights below `prefix` under the names that they are stored under, adapters merged into them.

    In memory transformers keeps experts as one weight, and some weights under other names.
    """
    from transformers.core_model_loading import revert_weight_conversion  # Late, as in `models.load_network`.

    network = engine.module.get_submodule(prefix.removesuffix("."))
    for name, tensor in _below(prefix, merged(engine.full_parameters(), engine.module)):
        yield from revert_weight_conversion(network, {name: tensor}).items()


def _below(prefix: str, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    return ((name.removeprefix(prefix), tensor) for name, tensor in weights if name.startswith(prefix))
