"""From judged completions to padded micro-batches, and from scores back to their examples.

It must not know losses or models. A column holds one score per completion or labelled step, example after example.
Invariant: an example is never split, because its scores are compared with each other. E examples, S sequences,
T tokens of the longest, N scores of a micro-batch, K scores of the example that has most.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from services.contracts.reward_example import RewardExample


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardMicroBatch:
    """Some examples, padded at the right.

    Attributes:
        token_ids: (S, T).
        attention_mask: (S, T) 1 on tokens, 0 on padding.
        rows: (N,) in which sequence each score is.
        positions: (N,) at which token it is, where steps are scored; empty where whole sequences are.
        places: (N,) which of the column's scores these are.
    """

    token_ids: Tensor
    attention_mask: Tensor
    rows: Tensor
    positions: Tensor
    places: Tensor


class RewardBatch:
    """All examples of a step, the same on every rank.

    Attributes:
        lengths: (E,) tokens of each example's longest sequence.
        widths: (E,) sequences of each example.
        num_scores: entries of the column.
    """

    def __init__(self, examples: Sequence[RewardExample]) -> None:
        self._examples = examples
        self.lengths = [max(map(len, example.sequences)) for example in examples]
        self.widths = [len(example.sequences) for example in examples]
        self._ends = torch.tensor([len(example.targets) for example in examples]).cumsum(0).tolist()
        self.num_scores: int = self._ends[-1]

    def collate(self, part: Sequence[int], device: torch.device, *, padding: int) -> RewardMicroBatch:
        """Pad some examples' sequences; no examples give one padding token without a score."""
        examples = [self._examples[i] for i in part]
        sequences = [torch.tensor(ids) for example in examples for ids in example.sequences]
        token_ids = pad_sequence(sequences or [torch.tensor([padding])], batch_first=True, padding_value=padding)
        masks = [torch.ones(len(ids), dtype=torch.int64) for ids in sequences] or [torch.ones(1, dtype=torch.int64)]
        # A step's sequence is the only one of its example; otherwise each sequence has one score.
        per_sequence = [len(example.positions) or 1 for example in examples for _ in example.sequences]
        positions = [position for example in examples for position in example.positions]
        nothing = torch.empty(0, dtype=torch.int64)
        places = [torch.arange(self._ends[i] - len(self._examples[i].targets), self._ends[i]) for i in part]
        return RewardMicroBatch(
            token_ids=token_ids.long().to(device),
            attention_mask=pad_sequence(masks, batch_first=True).to(device),
            rows=torch.repeat_interleave(torch.tensor(per_sequence, dtype=torch.int64)).to(device),
            positions=torch.tensor(positions, dtype=torch.int64, device=device),
            places=torch.cat([nothing, *places]).to(device),
        )

    def by_example(self, scores: Tensor, part: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (E, K) of a part's examples, their targets (E, K), and the mask (E, K) of those that are.

        Args:
            scores: (N,) of the part; at least one.
        """
        examples = [self._examples[i] for i in part]
        counts = [len(example.targets) for example in examples]
        targets = [torch.tensor(example.targets, device=scores.device) for example in examples]
        mask = torch.arange(max(counts))[None, :] < torch.tensor(counts)[:, None]
        rows = pad_sequence(list(torch.split(scores, counts)), batch_first=True)
        return rows, pad_sequence(targets, batch_first=True), mask.to(scores.device)
