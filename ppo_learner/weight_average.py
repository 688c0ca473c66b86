"""The moving average of a network's trained weights, in float32: s ← d·s + (1 − d)·w.

It must not know networks or how their weights are sharded. Invariant: each rank averages its own part of every weight,
so that averaging sends nothing; the parts of all ranks, one after the other, are the weight.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from ppo_learner.ranks import Ranks
from ppo_learner.shards import Shard


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

    def shards(self, sizes: Mapping[str, int]) -> list[Shard]:
        """This rank's share of each average, to be saved or restored.

        Args:
            sizes: elements of each whole weight.
        """
        shards = []
        for name, part in self._parts.items():
            begin = self._begin(sizes[name])
            held = part[: max(sizes[name] - begin, 0)]  # ZeRO-3 fills the last part up.
            if len(held):
                shards.append(Shard(name=name, numel=sizes[name], begin=begin, weight=held, stepped=held, offset=0))
        return shards

    def _whole(self, part: Tensor, like: Tensor) -> Tensor:
        begin = self._begin(like.numel())
        flat = torch.zeros(like.numel(), device=part.device)
        own = flat[begin : begin + len(part)]
        own.copy_(part[: len(own)])
        return self._ranks.sum(flat).view(like.shape).to(like)

    def _begin(self, num_elements: int) -> int:
        return self._ranks.rank * share_size(num_elements, self._ranks.world_size)


def share_size(num_elements: int, world_size: int) -> int:
    """Elements of a weight in one rank's part; the last may have fewer. ZeRO-3 shards so, too."""
    return -(-num_elements // world_size)
