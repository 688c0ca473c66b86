"""Weights and optimizer state on disk by the name of each weight, so that any number of ranks can read them back.

It must not know DeepSpeed or who holds what. Invariants: each rank writes what it holds and reads what it needs, so
nothing is gathered; what was written is read back to the bit; a weight that is not on disk as a whole is refused.
"""

from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.contracts.errors import CheckpointError

States = MutableMapping[Tensor, dict[str, Any]]  # Any: an optimizer keeps tensors and numbers
"""State of a torch optimizer, for each tensor that it steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """What one rank holds of one weight.

    Attributes:
        name: of the weight.
        numel: elements of the whole weight.
        begin: first element held, in the flattened weight.
        weight: (n,) view of the elements held, in the format that the optimizer steps.
        stepped: what the optimizer steps: the whole weight, or a flat tensor with shards of many.
        offset: where this one begins in there.
    """

    name: str
    numel: int
    begin: int
    weight: Tensor
    stepped: Tensor
    offset: int

    def of(self, state: Tensor) -> Tensor:
        """(n,) view of this shard's elements in a state that has one number for each stepped."""
        return state.view(-1).narrow(0, self.offset, len(self.weight))


def write_shards(folder: Path, shards: Iterable[Shard], states: States, *, rank: int) -> None:
    """Write what a rank holds to a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save([_record(shard, states.get(shard.stepped, {})) for shard in shards], folder / f"rank_{rank}.pt")


def read_shards(folder: Path, shards: Sequence[Shard], states: States) -> None:
    """Fill shards and their optimizer state with what any number of ranks wrote.

    Raises:
        CheckpointError: a weight is missing, has another size, or is not there as a whole; or the optimizer keeps state
            that belongs to no single number, as one with blocks does, and the weights were cut in another way.
    """
    records: dict[str, list[_Record]] = {}
    for path in sorted(folder.glob("rank_*.pt")):
        # Mapped, not read: of every file a rank touches only what it needs.
        for record in torch.load(path, mmap=True, map_location="cpu", weights_only=True):
            records.setdefault(record["name"], []).append(record)
    for shard in shards:
        pieces = [record for record in records.get(shard.name, []) if record["numel"] == shard.numel]
        if not pieces:
            raise CheckpointError(
                f"{folder} has no weight {shard.name!r} of {shard.numel} elements: it is incomplete, or of another "
                "model or other settings of the learner; resume with those of its run, or from an older checkpoint"
            )
        _copy(shard, shard.weight, [(piece, piece["weight"]) for piece in pieces])
        if pieces[0]["elements"] or pieces[0]["others"]:
            _restore_state(shard, pieces, states.setdefault(shard.stepped, {}))


_Record = dict[str, Any]  # Any: names, numbers and tensors, as they are saved
"""A shard on disk: where it lies, its weight, and of its optimizer state what has a number for each element, and the
others."""


def _record(shard: Shard, state: dict[str, Any]) -> _Record:
    elements = {key: shard.of(value) for key, value in state.items() if _is_elementwise(value, shard.stepped)}
    place = {"name": shard.name, "numel": shard.numel, "begin": shard.begin, "cut": _cut(shard)}
    others = {key: value for key, value in state.items() if key not in elements}
    return place | {"weight": shard.weight, "elements": elements, "others": others}


def _is_elementwise(value: object, stepped: Tensor) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.numel() == stepped.numel()


def _cut(shard: Shard) -> list[int]:
    """What says that two shards of a weight are the same part of it, and stand at the same place in what is stepped."""
    return [shard.begin, len(shard.weight), shard.offset, shard.stepped.numel()]


def _restore_state(shard: Shard, pieces: Sequence[_Record], state: dict[str, Any]) -> None:
    for key, like in pieces[0]["elements"].items():
        if key not in state:
            state[key] = torch.zeros_like(shard.stepped, dtype=like.dtype)
        _copy(shard, shard.of(state[key]), [(piece, piece["elements"][key]) for piece in pieces])
    same = next((piece for piece in pieces if piece["cut"] == _cut(shard)), None)
    for key, value in (same or pieces[0])["others"].items():
        if same is None and isinstance(value, Tensor) and value.dim():
            raise CheckpointError(
                f"the optimizer keeps {key!r} for whole blocks of weights, which cannot be cut in another way; resume "
                "with the learner.num_ranks and learner.zero_stage of the checkpoint's run"
            )
        state[key] = value.to(shard.stepped.device, copy=True) if isinstance(value, Tensor) else value


def _copy(shard: Shard, target: Tensor, pieces: Iterable[tuple[_Record, Tensor]]) -> None:
    """Copy to a shard's elements what overlaps with them."""
    end, found = shard.begin + len(target), 0
    for record, source in pieces:
        first, last = max(shard.begin, record["begin"]), min(end, record["begin"] + len(source))
        if first < last:
            here = source[first - record["begin"] : last - record["begin"]]
            target[first - shard.begin : last - shard.begin].copy_(here)
            found += last - first
    if found != len(target):
        raise CheckpointError(
            f"of {shard.name!r} {found} elements of {len(target)} are there: the checkpoint is incomplete; resume from "
            "an older one"
        )
