"""The moving average of a network's trained weights, in float32: s ← d·s + (1 − d)·w.

It must not know networks or how their weights are sharded. Invariant: each rank averages its own part of every weight,
so that averaging sends nothing; the parts of all ranks, one after the other, are the weight.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ppo_learner.ranks import Ranks


class WeightAverage:
    """The average of what `update` saw, which starts from what it is made with.

    Args:
        parts: name and this rank's part of each weight, flat; at least as many elements as the rank's share.
        decay: d, what is left of the old average.
    """

    def __init__(self, parts: Iterable[tuple[str, Tensor]], decay: float, ranks: Ranks) -> None:
        self._parts = {name: part.detach().float().clone() for name, part in parts}
        self._decay = decay
        self._ranks = ranks

    @torch.no_grad()
    def update(self, parts: Iterable[tuple[str, Tensor]]) -> None:
        """Move towards the present weights."""
        for name, part in parts:
            self._parts[name].lerp_(part.float(), 1 - self._decay)

    def applied(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same weights, averages in place of those that have one. Every rank calls it, in the same order."""
        for name, weight in weights:
            yield name, (self._whole(self._parts[name], weight) if name in self._parts else weight)

    def save(self, folder: Path) -> None:
        """Write this rank's parts."""
        torch.save(self._parts, self._path(folder))

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote on as many ranks."""
        for name, part in torch.load(self._path(folder), weights_only=True, map_location="cpu").items():
            self._parts[name].copy_(part)

    def _whole(self, part: Tensor, like: Tensor) -> Tensor:
        begin = self._ranks.rank * share_size(like.numel(), self._ranks.world_size)
        flat = torch.zeros(like.numel(), device=part.device)
        own = flat[begin : begin + len(part)]
        own.copy_(part[: len(own)])
        return self._ranks.sum(flat).view(like.shape).to(like)

    def _path(self, folder: Path) -> Path:
        return folder / f"average_rank_{self._ranks.rank}.pt"


def share_size(num_elements: int, world_size: int) -> int:
    """Elements of a weight in one rank's part; the last may have fewer. ZeRO-3 shards so, too."""
    return -(-num_elements // world_size)
