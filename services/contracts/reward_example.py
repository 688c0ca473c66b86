"""What one row of judged completions teaches a reward model, as token ids.

It must not know how the row was written, nor the loss. Invariant: `targets` has one entry for each score that the model
gives the example.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Literal

ExampleForm = Literal["pairs", "lists", "outcomes", "steps"]
"""What a row holds: two completions, a ranking of several, one with a label, or one with a label for each step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardExample:
    """One row.

    Attributes:
        row: its number in the data set.
        sequences: token ids of each completion behind its prompt, best first where they are ranked.
        positions: where the last token of each labelled step lies in the only sequence; empty where whole completions
            are scored.
        targets: the label of each completion or step; for a pair its margin and 0, for a list zeros.
        completion_lengths: characters of each completion, for what is known of a score by length alone.
    """

    row: int
    sequences: tuple[array[int], ...]
    positions: array[int]
    targets: tuple[float, ...]
    completion_lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        num_scores = len(self.positions) or len(self.sequences)
        if len(self.targets) != num_scores:
            raise ValueError(f"row {self.row}: {len(self.targets)} targets for {num_scores} scores")
