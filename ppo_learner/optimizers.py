"""Which rule turns gradients into steps: an optimizer is one line of `OPTIMIZERS`.

It must not know ZeRO or losses. Invariant: every parameter group of an optimizer says by `part` which of the learning
rates it takes and by `lr_factor` how many times, so that one schedule drives them all.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppo_learner.optimizer_config import OptimizerConfig

Group = dict[str, Any]  # Any: torch's parameter groups hold whatever their optimizer keeps

MUON_MOMENTUM = 0.95
MUON_STEP_SIZE = 0.2
"""Root mean square of a step of AdamW, to which Muon's is scaled: equation 4 of Liu et al. 2025, arXiv 2502.16982."""


def parameter_groups(
    module: nn.Module, parts: Sequence[Sequence[nn.Parameter]], config: OptimizerConfig
) -> list[Group]:
    """The trained parameters of each part, and with muon its matrices apart from the rest.

    Args:
        parts: parameters of `module` that have learning rates of their own.
    """
    matrices = {id(weight) for weight in _hidden_matrices(module)} if config.optimizer == "muon" else set()
    groups = []
    for number, part in enumerate(parts):
        trained = [weight for weight in part if weight.requires_grad]
        rest = [weight for weight in trained if id(weight) not in matrices]
        if rest:
            groups.append({"params": rest, "part": number, "lr_factor": 1.0})
        # DeepSpeed's Muon scales an m × n step to a root mean square of √(max(1, m/n) / max(m, n)) = 1/√n.
        for columns in sorted({weight.shape[1] for weight in trained if id(weight) in matrices}):
            alike = [weight for weight in trained if id(weight) in matrices and weight.shape[1] == columns]
            groups.append({"params": alike, "part": number, "lr_factor": MUON_STEP_SIZE * columns**0.5, "muon": True})
    return groups


def adamw(groups: Sequence[Group], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101)."""
    # The fused kernel takes a third of the time of the default one, on the CPU too.
    return torch.optim.AdamW(groups, **_adamw_settings(config), fused=True)


def adamw_8bit(groups: Sequence[Group], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW whose two moments are kept in 8 bits a number, by blocks (Dettmers et al. 2022, arXiv 2110.02861)."""
    from bitsandbytes.optim import AdamW8bit  # Late: an extra that not every run has.

    optimizer: torch.optim.Optimizer = AdamW8bit(groups, **_adamw_settings(config))
    return optimizer


def muon(groups: Sequence[Group], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Muon for matrices between embedding and head, and AdamW for the rest (Jordan et al. 2024; arXiv 2502.16982).

    M ← μM + (1 − μ)G, and W takes a step along NewtonSchulz(μM + (1 − μ)G), the nearest matrix with orthogonal rows or
    columns, of the size that AdamW's steps have.
    """
    if not torch.cuda.is_available():
        torch.compiler.set_stance("force_eager")  # Compiling takes longer than a small model's whole run.
    # Late, as all of DeepSpeed, which alone knows how to orthogonalise a matrix that lies on several ranks.
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    given = []
    for group in groups:
        is_muon = group.get("muon", False)
        for weight in group["params"]:
            weight.use_muon = is_muon
        settings = {"momentum": MUON_MOMENTUM} if is_muon else {"betas": config.betas, "eps": 1e-8}
        decay = config.weight_decay / group["lr_factor"] if is_muon else config.weight_decay
        given.append(group | settings | {"use_muon": is_muon, "lr": config.lr, "weight_decay": decay})
    optimizer: torch.optim.Optimizer = MuonWithAuxAdam(
        given, adam_optimizer=torch.optim.AdamW, adam_optimizer_kwargs={"fused": True}
    )
    return optimizer


OPTIMIZERS: dict[str, Callable[[Sequence[Group], OptimizerConfig], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "adamw_8bit": adamw_8bit,
    "muon": muon,
}


def set_learning_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> None:
    """Give each group the rate of its part."""
    for group in optimizer.param_groups:
        group["lr"] = rates[group["part"]] * group["lr_factor"]


def _adamw_settings(config: OptimizerConfig) -> dict[str, Any]:  # Any: as the optimizer's arguments are
    return {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}


def _hidden_matrices(module: nn.Module) -> Iterator[Tensor]:
    """The weights of linear layers and of nothing else: no embedding, no head on vocabulary or values, no router."""
    from transformers.pytorch_utils import Conv1D  # Late, as in `models.load_network`.

    elsewhere = {
        id(weight)
        for owner in module.modules()
        if not isinstance(owner, nn.Linear | Conv1D)
        for weight in owner.parameters(recurse=False)
    }
    for owner in module.modules():
        if isinstance(owner, nn.Linear | Conv1D) and id(owner.weight) not in elsewhere and min(owner.weight.shape) > 1:
            yield owner.weight
