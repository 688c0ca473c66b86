"""From scored groups to columns, and from columns to micro-batches of bounded size, the same number on every rank.

It must not know losses or models. A column holds one number per *sampled* token of the batch, sequence after sequence;
`action_offsets` says where each sequence's begin. Invariants: the logits at position t - 1 predict token t, so token 0
is never trained; the plan is a function of lengths alone; every sequence is in exactly one micro-batch of one rank.
B sequences, T tokens of the longest, A sampled tokens of the whole batch.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from services.contracts.records import Demonstration, Rollout, ScoredGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """All sequences of a step, the same on every rank.

    Attributes:
        token_ids: for each sequence (T,) token ids.
        positions: for each sequence, the positions of its sampled tokens, ascending.
        action_offsets: (B + 1,) where each sequence's part of a column begins.
        learnt: (B,) False on sequences that no loss takes in, though they are evaluated and scored as all are.
    """

    token_ids: tuple[Tensor, ...]
    positions: tuple[Tensor, ...]
    action_offsets: Tensor
    learnt: Tensor

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.token_ids]

    @property
    def num_actions(self) -> int:
        return int(self.action_offsets[-1])

    @property
    def counts(self) -> Tensor:
        """(B,) sampled tokens of each sequence."""
        return self.action_offsets.diff()

    @property
    def learnt_counts(self) -> Tensor:
        """(B,) sampled tokens of each sequence that losses take in."""
        return self.counts * self.learnt

    @property
    def learnt_actions(self) -> Tensor:
        """(A,) True on the tokens of these."""
        return self.over_actions(self.learnt)

    def over_actions(self, values: Tensor) -> Tensor:
        """(B,) → (A,): on each sampled token what its sequence has."""
        return torch.repeat_interleave(values, self.counts)

    def pad(self, column: Tensor) -> Tensor:
        """(A,) → (B, T): one row per sequence, sampled tokens only, zeros at the right."""
        return torch.nn.utils.rnn.pad_sequence(list(torch.split(column, self.counts.tolist())), batch_first=True)

    def unpad(self, padded: Tensor) -> Tensor:
        """(B, T) → (A,), the inverse of `pad`."""
        return padded[self.mask()]

    def mask(self) -> Tensor:
        """(B, T) True on sampled tokens, in the shape that `pad` gives."""
        return torch.arange(int(self.counts.max()))[None, :] < self.counts[:, None]

    def turn_ends(self) -> Tensor:
        """(B, T) True on a sampled token that tokens of a tool or an environment follow, and then a sampled one."""
        gaps = [torch.diff(positions, append=positions[-1:]) > 1 for positions in self.positions]
        return torch.nn.utils.rnn.pad_sequence(gaps, batch_first=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """Some sequences of a batch for one forward pass: padded at the right, or one after the other in a single row.

    With a causal model no real token sees padding at its right, so no attention mask is needed. Sequences in one row
    are kept apart by positions that start again at 0.

    Attributes:
        token_ids: (B, T), or (1, tokens of all sequences) if packed.
        rows: (N,) sequence of each sampled token.
        columns: (N,) the position that predicts it, one before its own, within its row of `token_ids`.
        targets: (N,) the sampled tokens.
        actions: (N,) where each lies in the batch's columns.
        packing: where each sequence lies in the single row; None where each has a row of its own.
        num_real: (B,) tokens of each row that are not padding; None where there is none.
    """

    token_ids: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor
    actions: Tensor
    packing: "Packing | None" = None
    num_real: Tensor | None = None

    @property
    def is_real(self) -> Tensor:
        """(B, T) False on padding."""
        if self.num_real is None:
            return torch.ones_like(self.token_ids, dtype=torch.bool)
        return torch.arange(self.token_ids.shape[1], device=self.token_ids.device) < self.num_real[:, None]

    @property
    def inputs(self) -> dict[str, Any]:  # Any: tensors and numbers
        """What a transformers model is called with."""
        if self.packing is None:
            return {"input_ids": self.token_ids}
        return {
            "input_ids": self.token_ids,
            "position_ids": self.packing.position_ids,
            **kernel_bounds(self.packing.bounds, self.packing.longest),
        }

    def at_targets(self, hidden: Tensor) -> Tensor:
        """(B, T, H) → (N, H): the states that predict the sampled tokens."""
        return hidden[0 if self.packing else self.rows, self.columns]

    def of_all(self, own: Tensor) -> Tensor:
        """(N,) → (N,): the same, since it is all there is; `sequence_parallel` makes parts of which it is not."""
        return own


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """B sequences in a single row of T tokens.

    Attributes:
        position_ids: (1, T) from 0 in each sequence.
        bounds: (B + 1,) where each begins, and T; int32, as attention kernels want it.
        longest: tokens of the longest.
    """

    position_ids: Tensor
    bounds: Tensor
    longest: int


def kernel_bounds(bounds: Tensor, longest: int) -> dict[str, Any]:  # Any: tensors and numbers
    """What kernels for variable lengths take of a packed row; without it each layer would find it anew."""
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def rollouts_of(groups: Sequence[ScoredGroup]) -> list[Rollout]:
    """The rollouts of all groups, in order."""
    return [rollout for scored in groups for rollout in scored.group.rollouts]


def batch_rollouts(groups: Sequence[ScoredGroup], *, learnt: Tensor | None = None) -> Batch:
    """The rollouts of all groups, in order.

    Args:
        learnt: (B,) False on those that no loss is to take in; all are learnt by default.
    """
    batch = _batch(rollouts_of(groups))
    return batch if learnt is None else replace(batch, learnt=learnt)


def batch_demonstrations(demonstrations: Sequence[Demonstration]) -> Batch:
    """All demonstrations, in order."""
    return _batch(demonstrations)


def sampler_logprobs(groups: Sequence[ScoredGroup], batch: Batch) -> Tensor:
    """(A,) what the rollout engine reported, for the sampled tokens of `batch`."""
    return _column([np.array(rollout.logprobs, dtype=np.float32) for rollout in rollouts_of(groups)], batch)


def sampler_versions(groups: Sequence[ScoredGroup], batch: Batch) -> Tensor:
    """(A,) version of the policy that sampled each token of `batch`."""
    return _column([np.array(rollout.policy_versions, dtype=np.int64) for rollout in rollouts_of(groups)], batch)


def plan_micro_batches(
    lengths: Sequence[int],
    *,
    max_tokens: int,
    num_ranks: int,
    widths: Sequence[int] | None = None,
    packed: bool = False,
) -> list[list[tuple[int, ...]]]:
    """At most `max_tokens` in a part, the same number of parts on each rank.

    Padded, sequences of similar length stand together and padding counts; packed, long ones are filled up with short
    ones. There are as few parts as the budget allows, rounded up to a multiple of the ranks, and then as even ones as
    so many parts allow. A sequence longer than `max_tokens` stands alone. Empty parts, which only keep collectives in
    step, are added when there are fewer sequences than parts.

    Args:
        widths: how many sequences of that length each stands for, which must stay together; 1 each by default.

    Returns:
        For each rank its parts, each a tuple of sequence numbers; parts of the same place have about as many tokens.
    """
    widths = widths or [1] * len(lengths)
    sizes = [length * width for length, width in zip(lengths, widths, strict=True)]
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))

    def cost(part: tuple[int, ...]) -> int:
        if packed or not part:
            return sum(sizes[i] for i in part)
        return sum(widths[i] for i in part) * lengths[part[0]]

    if packed:
        parts = _pack_evenly(sizes, max_tokens, num_ranks)
    else:
        parts = _fill_evenly(order, lengths, widths, max_tokens, num_ranks)
    num_parts = -(-len(parts) // num_ranks) * num_ranks
    while len(parts) < num_parts:
        widest = max(parts, key=lambda part: (len(part) > 1, cost(part)))
        if len(widest) > 1:
            parts.remove(widest)
            middle = (len(widest) + 1) // 2
            parts += [widest[:middle], widest[middle:]]
        else:
            parts.append(())
    parts.sort(key=lambda part: (-cost(part), part))
    return [parts[rank::num_ranks] for rank in range(num_ranks)]


def _fill_evenly(
    order: Sequence[int], lengths: Sequence[int], widths: Sequence[int], max_tokens: int, num_ranks: int
) -> list[tuple[int, ...]]:
    """Neighbours in `order` together, with the smallest budget that needs no more parts than `max_tokens` does."""
    num_parts = -(-len(_fill(order, lengths, widths, max_tokens)) // num_ranks) * num_ranks
    budgets = range(max(length * width for length, width in zip(lengths, widths, strict=True)), max_tokens)
    smallest = bisect_left(budgets, True, key=lambda budget: len(_fill(order, lengths, widths, budget)) <= num_parts)
    return _fill(order, lengths, widths, budgets[smallest] if smallest < len(budgets) else max_tokens)


def _fill(order: Sequence[int], lengths: Sequence[int], widths: Sequence[int], budget: int) -> list[tuple[int, ...]]:
    """Cut `order`, longest sequence first, wherever one more would take a part over `budget`."""
    parts: list[tuple[int, ...]] = []
    begin, width = 0, 0
    for end, number in enumerate(order):
        if end > begin and (width + widths[number]) * lengths[order[begin]] > budget:
            parts.append(tuple(order[begin:end]))
            begin, width = end, 0
        width += widths[number]
    return [*parts, tuple(order[begin:])]


def _pack_evenly(sizes: Sequence[int], max_tokens: int, num_ranks: int) -> list[tuple[int, ...]]:
    """As many parts as the fullest packing has, each sequence into the part that is emptiest when its turn comes."""
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    fullest = _pack(order, sizes, max_tokens)
    num_parts = min(-(-len(fullest) // num_ranks) * num_ranks, len(sizes))
    even: list[list[int]] = [[] for _ in range(num_parts)]
    emptiest = [(0, part) for part in range(num_parts)]
    for number in order:
        tokens, part = heappop(emptiest)
        even[part].append(number)
        heappush(emptiest, (tokens + sizes[number], part))
    fits = all(len(part) == 1 or sum(sizes[i] for i in part) <= max_tokens for part in even)
    return [tuple(part) for part in (even if fits else fullest)]


def _pack(order: Sequence[int], sizes: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Best fit, largest first: each sequence into the fullest part that still has room for it, or else a new one."""
    parts: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens free, part), ascending
    for number in order:
        place = bisect_left(room, (sizes[number], 0))
        if place < len(room):
            free, part = room.pop(place)
        else:
            free, part = max_tokens, len(parts)
            parts.append([])
        parts[part].append(number)
        insort(room, (free - sizes[number], part))
    return parts


def collate(batch: Batch, sequences: Sequence[int], device: torch.device, *, packed: bool = False) -> MicroBatch:
    """Some sequences side by side, padded at the right, or packed into one row.

    No sequences give one padding token and no sampled ones.
    """
    token_ids = [batch.token_ids[i] for i in sequences] or [torch.zeros(1, dtype=torch.int64)]
    positions = [batch.positions[i] for i in sequences]
    counts = torch.tensor([len(p) for p in positions], dtype=torch.int64)
    nothing = torch.empty(0, dtype=torch.int64)
    starts = [int(batch.action_offsets[i]) for i in sequences]
    lengths = list(map(len, token_ids))
    bounds = [0, *accumulate(lengths)]
    columns = [p + begin for p, begin in zip(positions, bounds, strict=False)] if packed else positions
    actions = [torch.arange(start, start + len(p)) for start, p in zip(starts, positions, strict=True)]
    targets = [batch.token_ids[i][batch.positions[i]] for i in sequences]
    whole = torch.cat(token_ids)[None] if packed else torch.nn.utils.rnn.pad_sequence(token_ids, batch_first=True)
    return MicroBatch(
        token_ids=whole.to(device),
        rows=torch.repeat_interleave(torch.arange(len(counts)), counts).to(device),
        columns=(torch.cat([nothing, *columns]) - 1).to(device),
        targets=torch.cat([nothing, *targets]).to(device),
        actions=torch.cat([nothing, *actions]).to(device),
        packing=_packing(bounds, device) if packed else None,
        num_real=torch.tensor(lengths if sequences else [0], device=device) if not (packed and sequences) else None,
    )


def _packing(bounds: Sequence[int], device: torch.device) -> Packing:
    lengths = [end - begin for begin, end in pairwise(bounds)]
    return Packing(
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None].to(device),
        bounds=torch.tensor(bounds, dtype=torch.int32, device=device),
        longest=max(lengths),
    )


def _column(sequences: Sequence[np.ndarray], batch: Batch) -> Tensor:
    """One number per token of each sequence, to the sampled tokens' column."""
    return torch.cat([torch.from_numpy(s)[p] for s, p in zip(sequences, batch.positions, strict=True)])


def _batch(sequences: Sequence[Rollout] | Sequence[Demonstration]) -> Batch:
    token_ids = tuple(torch.from_numpy(np.array(s.token_ids, dtype=np.int64)) for s in sequences)
    positions = tuple(_trained_positions(s) for s in sequences)
    offsets = [0, *accumulate(len(p) for p in positions)]
    return Batch(
        token_ids=token_ids,
        positions=positions,
        action_offsets=torch.tensor(offsets),
        learnt=torch.ones(len(token_ids), dtype=torch.bool),
    )


def _trained_positions(sequence: Rollout | Demonstration) -> Tensor:
    """Positions whose loss mask is 1; never 0, which nothing predicts."""
    mask = np.array(sequence.loss_mask, dtype=np.bool_)
    mask[:1] = False
    return torch.from_numpy(np.flatnonzero(mask))
