"""How large the gradient is in each kind of module: embedding, attention, MLP, norms, head.

It must not know losses or optimizers. Invariants: the squares of all kinds add up to the square of the whole norm,
before clipping, at any ZeRO stage and number of ranks; each rank adds up only what it has, so no gradient is put
together.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ppo_learner.ranks import Ranks

MODULE_KINDS = {
    "norm": ("norm", "ln_"),
    "head": ("lm_head", "value_head", "score", "head."),
    "embedding": ("embed", "wte", "wpe"),
    "attention": ("attn", "attention"),
    "mlp": ("mlp", "feed_forward", "experts", "router", "fc1", "fc2"),
    "other": ("",),
}
"""Kinds of modules, each with parts of a weight's name that tell it; the first that fits counts."""


def kind_of(name: str) -> str:
    """The kind of module that the weight of this name belongs to."""
    return next(kind for kind, parts in MODULE_KINDS.items() if any(part in name for part in parts))


def gradient_norms(module: nn.Module, ranks: Ranks, *, stage: int) -> dict[str, float]:
    """The norm of the gradient of each kind of module that has one. Every rank calls it, between backward and update.

    Args:
        stage: DeepSpeed's ZeRO stage, which says where the gradients lie.
    """
    squares = torch.zeros(len(MODULE_KINDS), dtype=torch.float64, device=ranks.device)
    present = torch.zeros_like(squares)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            place = list(MODULE_KINDS).index(kind_of(name))
            present[place] = 1
            for part in _own_parts(parameter, stage):
                squares[place] += torch.linalg.vector_norm(part, dtype=torch.float32).double().square()
    total = ranks.sum(squares) if stage else squares.cpu()
    return {
        kind: float(square.sqrt())
        for kind, square, there in zip(MODULE_KINDS, total, present.tolist(), strict=True)
        if there
    }


def _own_parts(parameter: nn.Parameter, stage: int) -> Iterator[Tensor]:
    """What this rank holds of a parameter's gradient, if it holds any: without ZeRO all of it."""
    # The attributes are DeepSpeed's, which hangs them on the parameters that it shards.
    if stage == 3:
        yield parameter._z3_optimizer.get_local_fp32_grad_for_param(parameter)  # type: ignore[attr-defined]
    elif stage:
        fragment = getattr(parameter, "_hp_mapping", None)
        if fragment is not None:
            gradient = fragment.get_lp_grad_fragment(parameter._index_in_param_group).flatten()  # type: ignore[attr-defined]
            address = fragment.lp_fragment_address
            is_whole = gradient.numel() == parameter.numel()
            yield gradient.narrow(0, address.start, address.numel) if is_whole else gradient
    elif parameter.grad is not None:
        yield parameter.grad
