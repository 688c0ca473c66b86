"""Whether sequences may share a row, or ranks a sequence: only where the networks give each what they give it alone.

It must not know how micro-batches are planned. Invariant: every rank decides alike. A model that carries a state from
token to token, or that leaves positions out of account, lets one sequence see another, or not all of itself, without
any error; so what is asked is not its name but its own logprobs.
"""

from __future__ import annotations

import inspect
from array import array
from collections.abc import Sequence
from typing import Any

from ppo_learner.engine import Engine
from ppo_learner.models import Policy
from ppo_learner.packing_config import PackingConfig
from ppo_learner.publishing import CANARY_TOLERANCE, canary_logprobs, default_canary
from ppo_learner.ranks import Ranks
from ppo_learner.sequence_shapes import unshareable
from services.contracts.errors import UserError
from services.contracts.settings import ModelConfig

Transformers = Sequence[Any]  # Any: modules of transformers
Probes = Sequence["array[int]"]
"""Token ids of a few sequences that a policy is tried on."""


def lay_out(
    config: PackingConfig, model: ModelConfig, policy: Engine, transformers: Transformers, ranks: Ranks
) -> bool:
    """Whether micro-batches are packed. Every rank calls it, before it trains.

    Args:
        transformers: of every network that takes the micro-batches, the policy's first.

    Raises:
        UserError: packing is asked for, and some network does not keep sequences apart; or ranks are to share
            sequences, of which it would make something else.
    """
    probes = default_canary(transformers[0].config.vocab_size)
    if ranks.num_sharing > 1 and (problem := _against_sharing(model, policy, transformers, probes, ranks)):
        raise UserError(
            f"learner.sequence_parallel: {ranks.num_sharing} does not fit the model {model.path!r}: {problem}; "
            "set it to 1"
        )
    if config.packing == "off" or (config.packing == "auto" and config.attention != "flash_attention_2"):
        return False
    problem = _against_packing(model, policy, transformers, probes, ranks)
    if problem and config.packing == "on":
        raise UserError(
            f"learner.packing: on does not fit the model {model.path!r}: {problem}; set learner.packing: off"
        )
    return problem is None


def _against_sharing(
    model: ModelConfig, policy: Engine, transformers: Transformers, probes: Probes, ranks: Ranks
) -> str | None:
    """Why ranks must not share sequences."""
    shapes = (unshareable(transformer.config, ranks.num_sharing) for transformer in transformers)
    if problem := next(filter(None, shapes), None) or _unasked(transformers):
        return problem
    assert isinstance(policy.module, Policy) and policy.module.sequences
    with policy.module.sequences.apart():
        alone = canary_logprobs(policy, ranks, probes)
    error = _mean_error(alone, canary_logprobs(policy, ranks, probes))
    if error > CANARY_TOLERANCE[model.dtype]:
        return f"logprobs of shared sequences are off by {error:.2g} on average"
    return None


def _against_packing(
    model: ModelConfig, policy: Engine, transformers: Transformers, probes: Probes, ranks: Ranks
) -> str | None:
    """Why sequences must not share a row."""
    if problem := _unasked(transformers):
        return problem
    alone = canary_logprobs(policy, ranks, probes)
    error = _mean_error(alone, canary_logprobs(policy, ranks, probes, packed=True))
    if error > CANARY_TOLERANCE[model.dtype]:
        return f"logprobs of sequences in one row are off by {error:.2g} on average, so they see each other"
    return None


def _unasked(transformers: Transformers) -> str | None:
    """Why the policy's logprobs would not tell of all the networks, or it cannot be told where sequences begin."""
    kinds = {type(transformer).__name__: transformer for transformer in transformers}
    if len(kinds) > 1:
        return f"policy and critic are of different kinds ({', '.join(kinds)})"
    for name, transformer in kinds.items():
        parameters = inspect.signature(transformer.forward).parameters
        takes_more = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
        if "position_ids" not in parameters or not takes_more:
            return f"{name} takes no position ids"
    return None


def _mean_error(some: Sequence[array[float]], others: Sequence[array[float]]) -> float:
    errors = [abs(a - b) for ours, theirs in zip(some, others, strict=True) for a, b in zip(ours, theirs, strict=True)]
    return sum(errors) / len(errors)
