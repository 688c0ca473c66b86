"""Sequences that several ranks share: each holds a part of a row's tokens, and in attention all tokens of some heads.

This is DeepSpeed-Ulysses (Jacobs et al. 2023, arXiv 2309.14509). It must not know losses or how micro-batches are
planned. Invariants: the ranks of a share are given the same micro-batches, make the same answers of them, and so the
same loss; of an answer's gradient each rank takes its own tokens' part, so that the gradients of all ranks add up to
that of the loss. B rows, T tokens of each, N sampled tokens, n of them this rank's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional

from ppo_learner.batching import MicroBatch, kernel_bounds
from ppo_learner.ranks import Ranks

_SHARED = "shared_row"
"""Option of an attention function that says of which rows it sees a part; models hand options on to their layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedRow:
    """What attention must know of rows of which it is given a part.

    Attributes:
        group: the ranks that have the other parts.
        position_ids: (1, T) of the whole rows, where sequences begin at 0.
        packed: whether a row holds several sequences.
        bounds: what kernels for variable lengths are told of them; empty where each row is one sequence.
    """

    group: distributed.ProcessGroup
    position_ids: Tensor
    packed: bool
    bounds: dict[str, Any]  # Any: tensors and numbers

    def mask(self, window: int | None) -> Tensor | None:
        """(1, 1, T, T) True where a token sees another; None where it sees all before it.

        Args:
            window: how many tokens, itself included, a token sees at most.
        """
        length = self.position_ids.shape[1]
        if not self.packed and (window is None or window >= length):
            return None
        place = torch.arange(length, device=self.position_ids.device)
        sequence = (self.position_ids[0] == 0).cumsum(0)
        distance = place[:, None] - place[None, :]
        seen = (distance >= 0) & (sequence[:, None] == sequence[None, :])
        return (seen if window is None else seen & (distance < window))[None, None]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowPart:
    """A rank's part of a micro-batch, with what a network asks of one.

    Attributes:
        inputs: what a transformers model is called with.
        targets: (n,) the sampled tokens that this part predicts.
        is_real: (B, T / ranks) False on padding.
    """

    inputs: dict[str, Any]  # Any: tensors and numbers
    targets: Tensor
    is_real: Tensor
    _rows: Tensor
    _columns: Tensor
    _mine: Tensor
    _group: distributed.ProcessGroup

    def at_targets(self, hidden: Tensor) -> Tensor:
        """(B, T / ranks, H) → (n, H): the states that predict the sampled tokens."""
        return hidden[self._rows, self._columns]

    def of_all(self, own: Tensor) -> Tensor:
        """(n,) → (N,) what every rank says of its own tokens."""
        whole: Tensor = _Joined.apply(own, self._mine, self._group)  # type: ignore[no-untyped-call]
        return whole


class SequenceParallel:
    """Cuts a network's micro-batches into parts, whose answers can be put together again.

    Args:
        ranks: this rank's place.
        group: the ranks that share its sequences.
        attention: name of the attention function of the networks that will be called.
    """

    def __init__(self, ranks: Ranks, group: distributed.ProcessGroup, attention: str) -> None:
        self._ranks = ranks
        self._group = group
        self._apart = False
        _share_attention(attention)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Have each rank see whole sequences meanwhile, without gradient."""
        self._apart = True
        try:
            yield
        finally:
            self._apart = False

    def part(self, batch: MicroBatch) -> MicroBatch | RowPart:
        """This rank's part of a micro-batch that every rank of the group has."""
        if self._apart:
            return batch
        size = self._ranks.num_sharing
        length = -(-batch.token_ids.shape[1] // size)
        begin = self._ranks.rank % size * length
        here = slice(begin, begin + length)
        filling = size * length - batch.token_ids.shape[1]
        positions, bounds = _filled(batch, filling)
        mine = (batch.columns >= here.start) & (batch.columns < here.stop)
        row = SharedRow(group=self._group, position_ids=positions, packed=batch.packing is not None, bounds=bounds)
        rows = torch.zeros_like(batch.rows) if batch.packing else batch.rows
        return RowPart(
            inputs={
                "input_ids": functional.pad(batch.token_ids, (0, filling))[:, here],
                "position_ids": positions[:, here],
                _SHARED: row,
            },
            targets=batch.targets[mine],
            is_real=functional.pad(batch.is_real, (0, filling))[:, here],
            _rows=rows[mine],
            _columns=batch.columns[mine] - begin,
            _mine=mine,
            _group=self._group,
        )


def _filled(batch: MicroBatch, filling: int) -> tuple[Tensor, dict[str, Any]]:  # Any: tensors and numbers
    """(1, T) positions of rows with so much padding behind them, a sequence of its own where rows hold several; and
    where sequences begin, for kernels."""
    device = batch.token_ids.device
    if batch.packing is None:
        return torch.arange(batch.token_ids.shape[1] + filling, device=device)[None], {}
    positions = torch.cat([batch.packing.position_ids, torch.arange(filling, device=device)[None]], dim=1)
    bounds, longest = batch.packing.bounds, max(batch.packing.longest, filling)
    if filling:
        bounds = torch.cat([bounds, bounds[-1:] + filling])
    return positions, kernel_bounds(bounds, longest)


class _Joined(torch.autograd.Function):
    """The answers of all parts; the gradient of each goes to the rank that gave it, and nothing is added up."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, mine: Tensor, group: distributed.ProcessGroup) -> Tensor:  # Any: of autograd
        ctx.save_for_backward(mine)
        whole = own.new_zeros(len(mine))
        whole[mine] = own
        distributed.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (mine,) = ctx.saved_tensors
        return gradient[mine], None, None


@cache
def _share_attention(name: str) -> None:
    """Have transformers' attention function of this name heed `_SHARED`; without that option it is what it was.

    It keeps its name, because transformers prepares masks by it.
    """
    from transformers import AttentionInterface  # late, as in `models.load_network`

    alone: Callable[..., Any] = AttentionInterface()[name]

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *args: Any, **options: Any) -> Any:
        row: SharedRow | None = options.pop(_SHARED, None)
        if row is None:
            return alone(module, query, key, value, mask, *args, **options)
        # The mask given is that of a part, as if it were all.
        whole = row.mask(options.get("sliding_window")) if name == "sdpa" else None
        exchange = _exchange(alone, row.group, *query.shape[:2], key.shape[1], query.shape[3])
        return exchange(module, query, key, value, whole, *args, **options, **row.bounds)

    AttentionInterface.register(name, attend)


@cache
def _exchange(
    attention: Callable[..., Any], group: distributed.ProcessGroup, rows: int, heads: int, kv_heads: int, head_size: int
) -> Callable[..., Any]:
    """An attention function of parts of so many rows, which sees all tokens of some heads."""
    from deepspeed import init_distributed
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    init_distributed()  # Its own view of the group that this process is in.
    exchange: Callable[..., Any] = UlyssesSPAttentionHF(
        attn=attention,
        batch_size=rows,
        attn_head_count=heads,
        attn_head_size=head_size,
        kv_head_count=kv_heads,
        num_hidden_layers=0,  # Only its debugging counts them.
        process_group=group,
        seq_length_is_variable=True,
    )
    return exchange
