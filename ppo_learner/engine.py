"""A module with its optimizer, sharded over the ranks by DeepSpeed.

It must not know losses, batches or algorithms. Only it, `partitions` (where DeepSpeed keeps weights) and
`sequence_parallel` (its attention) know DeepSpeed. Invariants: an update is the gradient of the *sum* of all losses
given to `backward` since the last one, on every rank; an update with a non-finite gradient is skipped by every rank or
by none. Every method is a collective: every rank calls it, in the same order.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppo_learner import partitions
from ppo_learner.gradient_norms import gradient_norms
from ppo_learner.memory_config import MemoryConfig
from ppo_learner.optimizer_config import OptimizerConfig
from ppo_learner.optimizers import OPTIMIZERS, parameter_groups, set_learning_rates
from ppo_learner.ranks import Ranks
from ppo_learner.shards import read_shards, write_shards
from ppo_learner.weight_average import WeightAverage, share_size

_AVERAGE = "average"
"""Folder of the moving average below an engine's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """What one optimizer step did: the gradient's norm before clipping, whether the weights moved, and the norm by kind
    of module."""

    gradient_norm: float
    applied: bool
    norms: Mapping[str, float] = field(default_factory=dict)


class Engine:
    """A module under training.

    Args:
        module: weights on the CPU, equal on every rank, all of one number format.
        config: optimizer, clipping and ZeRO stage.
        ranks: the group to shard over.
        groups: parts of the module's parameters that have learning rates of their own; all of them by default. Frozen
            ones are neither updated nor saved.
        averaged: whether the config's moving average is kept of these weights.
    """

    def __init__(
        self,
        module: nn.Module,
        config: OptimizerConfig,
        ranks: Ranks,
        *,
        groups: Sequence[Sequence[nn.Parameter]] | None = None,
        averaged: bool = True,
    ) -> None:
        self._max_gradient_norm = config.clipping
        self._ranks = ranks
        self._stage = _effective_stage(module, config.zero_stage)
        # DeepSpeed starts these copies in `backward`, and waits for them in its own step alone.
        self._copies_gradients = config.offload != "none" and ranks.device.type == "cuda"
        self._engine = _initialize(
            model=module,
            model_parameters=parameter_groups(module, groups or [list(module.parameters())], config),
            optimizer=lambda groups: OPTIMIZERS[config.optimizer](groups, config),
            config=_configuration(
                module,
                self._stage,
                config.offload,
                clipping=config.clipping,
                whole_gradients=config.optimizer == "muon",
            ),
        )
        decay = config.ema_decay
        self._average = WeightAverage(self._own_parts(), decay, ranks) if decay is not None and averaged else None

    def __call__(self, *inputs: Any, **options: Any) -> Any:  # Any: whatever the module takes and gives
        """The module's forward pass."""
        return self._engine(*inputs, **options)

    @property
    def module(self) -> nn.Module:
        """What is trained; its weights may be sharded."""
        return self._engine.module  # type: ignore[no-any-return]  # DeepSpeed is untyped

    def train(self, training: bool = True) -> None:
        """Enter training mode, or leave it: only gradient checkpointing and dropout look at it."""
        self._engine.train(training)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a loss's gradient; `last` before each `update`, where ranks exchange what they have.

        A non-finite loss poisons the gradient, so that the update is skipped even if the gradient itself is finite.
        """
        loss = loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks; the losses given here add up instead.
        self._engine.backward(loss * self._ranks.world_size)

    def update(self, *learning_rates: float) -> Update:
        """One optimizer step, with one learning rate for each of the groups."""
        set_learning_rates(self._engine.optimizer, learning_rates)
        if self._copies_gradients:
            torch.cuda.synchronize(self._ranks.device)  # Until then they may not have arrived, where norms are read.
        norms = gradient_norms(self.module, self._ranks, stage=self._stage)
        return replace(self._update(), norms=norms)

    def full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Name and whole weight, one after the other, tied weights once; valid until the next is asked for."""
        deepspeed = _import_deepspeed()
        for name, parameter in self.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self._stage == 3):
                yield name, parameter.data

    def change(self, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        """Give trained weights other values, each number by itself; the optimizer's state stays as it is."""
        for shard in partitions.shards_of(self._engine, self._stage):
            if shard.name in changes:
                shard.weight.copy_(changes[shard.name](shard.weight))
        partitions.spread_weights(self._engine, self._stage)

    def average(self) -> None:
        """Take the present weights into their moving average, where one is kept."""
        if self._average:
            self._average.update(self._own_parts())

    def averaged_parameters(self) -> Iterator[tuple[str, Tensor]] | None:
        """As `full_parameters`, with the moving averages of trained weights; None where none are kept."""
        return self._average.applied(self.full_parameters()) if self._average else None

    def save(self, folder: Path) -> None:
        """Write trained weights and optimizer state of every rank below `folder`. Raises `CheckpointError`."""
        if self._stage or self._ranks.is_first:
            states = partitions.states_of(self._engine, self._stage)
            write_shards(folder, partitions.shards_of(self._engine, self._stage), states, rank=self._ranks.rank)
        if self._average:
            write_shards(folder / _AVERAGE, self._average.shards(self._sizes()), {}, rank=self._ranks.rank)

    def load(self, folder: Path) -> None:
        """Restore what any number of ranks at any ZeRO stage saved, into an engine that has not trained.

        Raises:
            CheckpointError: it was another network, or part of it is missing.
        """
        shards = list(partitions.shards_of(self._engine, self._stage))
        read_shards(folder, shards, partitions.states_of(self._engine, self._stage))
        partitions.spread_weights(self._engine, self._stage)
        if self._average:
            read_shards(folder / _AVERAGE, self._average.shards(self._sizes()), {})

    def close(self) -> None:
        """Release hooks and buffers."""
        self._engine.destroy()

    def _own_parts(self) -> Iterator[tuple[str, Tensor]]:
        """Name and this rank's part of each trained weight, flat; at ZeRO-3 it is all that there is of it here."""
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                if self._stage == 3:
                    yield name, parameter.ds_tensor.flatten()  # type: ignore[attr-defined]  # DeepSpeed's
                    continue
                size = share_size(parameter.numel(), self._ranks.world_size)
                begin = self._ranks.rank * size
                yield name, parameter.data.flatten()[begin : begin + size]

    def _sizes(self) -> dict[str, int]:
        """Elements of each whole weight."""
        return {name: getattr(weight, "ds_numel", weight.numel()) for name, weight in self.module.named_parameters()}

    def _update(self) -> Update:
        if self._stage:
            self._engine.step()
            applied = not self._engine.optimizer.overflow
            norm = float(self._engine.get_global_grad_norm())
            return Update(gradient_norm=norm if applied else float("inf"), applied=applied)
        return self._update_unsharded()

    def _update_unsharded(self) -> Update:
        limit = self._max_gradient_norm or float("inf")
        norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), limit))
        applied = norm < float("inf")
        if applied:
            self._engine.step()
        else:
            self._engine.zero_grad()
        return Update(gradient_norm=norm, applied=applied)


def shard_frozen(module: nn.Module, ranks: Ranks, config: MemoryConfig) -> nn.Module:
    """A network that is only evaluated: sharded over the ranks at ZeRO stage 3, whole on the device below it."""
    if config.zero_stage < 3:
        return module.to(ranks.device)
    engine = _initialize(model=module, config=_configuration(module, 3, config.offload, clipping=0.0))
    assert isinstance(engine, nn.Module)
    return engine


def leave() -> None:
    """Leave the process group and drop what DeepSpeed keeps of it."""
    comm = _import_deepspeed().comm
    # DeepSpeed knows of the group only once it was given a module.
    (comm if comm.is_initialized() else torch.distributed).destroy_process_group()


def _configuration(
    module: nn.Module, stage: int, offload: str, *, clipping: float, whole_gradients: bool = False
) -> dict[str, object]:
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    moved_out = {
        "none": {},
        "optimizer": {"offload_optimizer": host},
        "parameters_and_optimizer": {"offload_optimizer": host, "offload_param": host},
    }[offload]
    configuration: dict[str, object] = {
        # Micro-batches vary in size and number: `backward` counts, not DeepSpeed.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # Below stage 1 `_update_unsharded` clips, since it needs the norm before the step.
        "gradient_clipping": clipping if stage else 0.0,
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": _small_parameter(module),
            "reduce_scatter": not whole_gradients,
            **moved_out,
        },
        "zero_allow_untested_optimizer": True,
        # On the CPU torch's fused AdamW steps, too; DeepSpeed's own would have to be compiled first.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    if _dtype(module) == torch.bfloat16:
        # Many micro-batches added up in bfloat16 would lose the small ones.
        configuration |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return configuration


def _effective_stage(module: nn.Module, stage: int) -> int:
    """bfloat16 weights need float32 master weights, which DeepSpeed keeps from stage 1 on."""
    return max(stage, 1) if _dtype(module) == torch.bfloat16 else stage


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _small_parameter(module: nn.Module) -> int:
    """Elements below which ZeRO-3 keeps a weight whole: norms and biases, not matrices."""
    return 10 * max((p.shape[0] for p in module.parameters() if p.dim() == 1), default=1)


def prepare_deepspeed() -> None:
    """Have DeepSpeed choose the right device and keep its log to itself; call it before anything imports DeepSpeed."""
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    _import_deepspeed().utils.logger.setLevel(logging.ERROR)
    # Compiled with g++ at first use, and only tensor-parallel inference calls it.
    _import_deepspeed().ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _initialize(**arguments: Any) -> Any:  # Any: DeepSpeed has no type information
    with redirect_stdout(StringIO()):  # It prints the machine's memory.
        engine, *_ = _import_deepspeed().initialize(**arguments)
    return engine


def _import_deepspeed() -> Any:  # Any: the same
    """Imported late, because at that moment it chooses its device."""
    import deepspeed

    return deepspeed
