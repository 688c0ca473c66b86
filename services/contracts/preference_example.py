"""What one row of preferences teaches a policy, as token ids.

It must not know how the row was written, nor the loss. Invariants: a pair has two completions of one prompt, the chosen
one first; a row of the other form has one completion, its label, and another row's completion behind its prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from services.contracts.records import Demonstration

PreferenceForm = Literal["pairs", "labels"]
"""What a row holds: two completions of which one is preferred, or one that is desirable or not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceExample:
    """One row.

    Attributes:
        row: its number in the data set.
        completions: chosen and rejected, or the one that has a label; each behind its prompt, of which nothing is
            learnt.
        desirable: that label; None for a pair.
        unrelated: the prompt with the completion of another row, on which a labelled row's policy is compared with its
            reference.
        reference: Σ_t log π_ref(y_t) of each completion and, behind them, of the unrelated one; empty where none is
            needed.
    """

    row: int
    completions: tuple[Demonstration, ...]
    desirable: bool | None = None
    unrelated: Demonstration | None = None
    reference: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        form = len(self.completions), self.desirable is None, self.unrelated is None
        if form not in ((2, True, True), (1, False, False)):
            raise ValueError(f"row {self.row} is neither a pair nor a completion with a label and an unrelated one")
        if len(self.reference) not in (0, len(self.sequences)):
            raise ValueError(f"row {self.row}: {len(self.reference)} reference logprobs for {len(self.sequences)}")

    @property
    def sequences(self) -> tuple[Demonstration, ...]:
        """The completions, and behind them the unrelated one where there is one."""
        return self.completions if self.unrelated is None else (*self.completions, self.unrelated)
