"""Whether sequences may share a row: only where the networks give each what they give it alone.

It must not know how micro-batches are planned. Invariant: every rank decides alike. A model that carries a state from
token to token, or that leaves positions out of account, lets one sequence see another without any error; so what is
asked is not its name but its own logprobs.
"""

from __future__ import annotations

import inspect
from array import array
from collections.abc import Sequence

from torch import nn

from ppo_learner.config import LearnerConfig
from ppo_learner.engine import Engine
from ppo_learner.publishing import CANARY_TOLERANCE, canary_logprobs
from ppo_learner.ranks import Ranks
from services.contracts.errors import UserError
from services.contracts.settings import ModelConfig


def choose_packing(
    config: LearnerConfig,
    model: ModelConfig,
    policy: Engine,
    transformers: Sequence[nn.Module],
    probes: Sequence[array[int]],
    ranks: Ranks,
) -> bool:
    """Whether micro-batches are packed. Every rank calls it.

    Args:
        transformers: of every network that takes the micro-batches, the policy's first.
        probes: token ids of a few sequences that the policy is tried on.

    Raises:
        UserError: packing is asked for, and some network does not keep sequences apart.
    """
    if config.packing == "off" or (config.packing == "auto" and config.attention != "flash_attention_2"):
        return False
    problem = _problem(model, policy, transformers, probes, ranks)
    if problem and config.packing == "on":
        raise UserError(
            f"learner.packing: on does not fit the model {model.path!r}: {problem}; set learner.packing: off"
        )
    return problem is None


def _problem(
    model: ModelConfig, policy: Engine, transformers: Sequence[nn.Module], probes: Sequence[array[int]], ranks: Ranks
) -> str | None:
    kinds = {type(transformer).__name__: transformer for transformer in transformers}
    if len(kinds) > 1:
        return f"policy and critic are of different kinds ({', '.join(kinds)})"
    for name, transformer in kinds.items():
        parameters = inspect.signature(transformer.forward).parameters
        takes_more = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
        if "position_ids" not in parameters or not takes_more:
            return f"{name} takes no position ids"
    alone = canary_logprobs(policy, ranks, probes)
    packed = canary_logprobs(policy, ranks, probes, packed=True)
    errors = [abs(a - b) for some, others in zip(alone, packed, strict=True) for a, b in zip(some, others, strict=True)]
    error = sum(errors) / len(errors)
    if error > CANARY_TOLERANCE[model.dtype]:
        return f"logprobs of sequences in one row are off by {error:.2g} on average, so they see each other"
    return None
