"""How far a judge's comparisons can be trusted: agreement of the two orders, and leanings to a place or to length.

It must not know judges or files. Invariant: a share is told with the interval that its number of cases allows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from reward_server.judges.comparison import Comparison
from services.contracts.records import Json
from services.control.candidates import Pair
from services.control.wilson import wilson_interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A pair and its comparison."""

    pair: Pair
    comparison: Comparison


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """`count` of `total` cases."""

    count: int
    total: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of Wilson (1927); 0 to 1 where there is no case."""
        return wilson_interval(self.count / self.total, self.total) if self.total else (0.0, 1.0)

    @property
    def leans(self) -> bool:
        """Whether one half is outside the interval."""
        low, high = self.interval
        return not low <= 0.5 <= high

    def to_json(self) -> Json:
        low, high = self.interval
        share = self.count / self.total if self.total else None
        return {"share": share, "low": low, "high": high, "count": self.count, "total": self.total}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.count} of {self.total} (95% interval {low:.0%} to {high:.0%})"


@dataclass(frozen=True, kw_only=True, slots=True)
class PairStatistics:
    """What a set of comparisons shows.

    Attributes:
        agreement: pairs on which both orders gave one verdict.
        decided: pairs with a preference.
        chose_a: verdicts for the answer shown first, of those for either. One half where the order does not matter.
        chose_longer: preferred texts that are the longer one, of decided pairs that differ in length.
    """

    agreement: Share
    decided: Share
    chose_a: Share
    chose_longer: Share

    def to_json(self) -> dict[str, Json]:
        names = ("agreement", "decided", "chose_a", "chose_longer")
        return {name: getattr(self, name).to_json() for name in names}


def pair_statistics(judged: Sequence[Judged]) -> PairStatistics:
    """The statistics of these comparisons."""
    comparisons = [found.comparison for found in judged]
    num_a = sum(comparison.num_for_a for comparison in comparisons)
    num_b = sum(comparison.num_for_b for comparison in comparisons)
    # The sign of margin times difference in length tells whether the longer one was preferred.
    longer = [found.comparison.margin * (len(found.pair.first) - len(found.pair.second)) for found in judged]
    return PairStatistics(
        agreement=Share(count=sum(comparison.agrees for comparison in comparisons), total=len(judged)),
        decided=Share(count=sum(comparison.margin != 0 for comparison in comparisons), total=len(judged)),
        chose_a=Share(count=num_a, total=num_a + num_b),
        chose_longer=Share(count=sum(lean > 0 for lean in longer), total=sum(lean != 0 for lean in longer)),
    )
