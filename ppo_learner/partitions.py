"""Where DeepSpeed keeps this rank's part of every trained weight, at each ZeRO stage.

It must not know files. Invariant: over all ranks the shards are each trained weight exactly once; frozen weights, which
come from the model's own folder, are in none.
"""

from collections.abc import Iterator
from typing import Any

from ppo_learner.shards import Shard, States


def shards_of(engine: Any, stage: int) -> Iterator[Shard]:  # Any: DeepSpeed is untyped, here and below
    """What this rank updates of each trained weight at a ZeRO stage; at stage 0 every rank holds all."""
    find = {0: _whole, 3: _of_partitioned_weights}.get(stage, _of_flat_groups)
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            yield from find(engine, name, parameter)


def states_of(engine: Any, stage: int) -> States:
    """The state of the optimizer that steps the shards."""
    return (engine.optimizer.optimizer if stage else engine.optimizer).state  # type: ignore[no-any-return]


def spread_weights(engine: Any, stage: int) -> None:
    """Have the network compute with what its shards hold. Every rank calls it."""
    optimizer = engine.optimizer
    if stage == 3:
        optimizer.checkpoint_event_prologue()
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        optimizer.checkpoint_event_epilogue()
    elif stage:
        optimizer.update_lp_params()


def _whole(engine: Any, name: str, parameter: Any) -> Iterator[Shard]:
    weight = parameter.data.view(-1)
    yield Shard(name=name, numel=len(weight), begin=0, weight=weight, stepped=parameter, offset=0)


def _of_flat_groups(engine: Any, name: str, parameter: Any) -> Iterator[Shard]:
    """Stages 1 and 2: a group's weights one after the other, cut at equal distances."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return  # All of it is on other ranks.
    [flat] = engine.optimizer.optimizer.param_groups[mapping.param_group_index]["params"]
    yield Shard(
        name=name,
        numel=parameter.numel(),
        begin=mapping.lp_fragment_address.start,
        weight=mapping.hp_fragment.data,
        stepped=flat,
        offset=mapping.hp_fragment_address.start,
    )


def _of_partitioned_weights(engine: Any, name: str, parameter: Any) -> Iterator[Shard]:
    """Stage 3: each weight cut into equal parts, the last one filled up."""
    optimizer = engine.optimizer
    group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
    flat = optimizer.fp32_partitioned_groups_flat[group]
    begin = length * optimizer._get_param_partition_rank(parameter)
    held = min(length, parameter.ds_numel - begin)
    if held > 0:
        weight = flat.data.narrow(0, offset, held)
        yield Shard(name=name, numel=parameter.ds_numel, begin=begin, weight=weight, stepped=flat, offset=offset)
