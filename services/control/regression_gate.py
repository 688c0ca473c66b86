"""Whether a model has lost an ability that it had: each evaluation against the same one before, prompt by prompt.

Pure. It must not know when an evaluation is made, nor what is done about a breach. Invariant: a gate judges by scores
of the very same prompts before and after.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from services.contracts.errors import UserError
from services.contracts.records import Json
from services.control.evaluate_config import GateConfig, HeldOutConfig
from services.control.paired_change import PairedChange, paired_change

Scores = Mapping[str, Sequence[float]]
"""A number for each prompt of each evaluation, by its name: what the evaluation's metric is the mean of."""
Verdict = Literal["breach", "holds", "not_gated"]

_ROUNDING = 1e-9
"""One wrong of fifty is a drop of 0.02, also where 0.96 less 0.94 is a little more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One evaluation before and after."""

    name: str
    metric: str
    paired: PairedChange
    gate: GateConfig | None

    @property
    def verdict(self) -> Verdict:
        if self.gate is None:
            return "not_gated"
        low, high = self.paired.interval_95
        drop = {"proven": -high, "measured": -self.paired.change, "possible": -low}[self.gate.breach]
        return "breach" if drop > self.gate.max_drop + _ROUNDING else "holds"

    def __str__(self) -> str:
        paired = self.paired
        low, high = paired.interval_95
        text = (
            f"{self.name}: {self.metric} {paired.before:.4g} before, {paired.after:.4g} after, {paired.change:+.4g} "
            f"(95% interval {low:+.4g} to {high:+.4g}, {paired.num_prompts} prompts)"
        )
        if self.gate is None:
            return text
        said = "BREACH" if self.verdict == "breach" else "holds"
        return f"{text}; {said}: a drop of more than {self.gate.max_drop:g} must not be {self.gate.breach}"

    def to_row(self) -> dict[str, Json]:
        """What a summary says of it."""
        return {
            "name": self.name,
            "metric": self.metric,
            "before": self.paired.before,
            "after": self.paired.after,
            "change": self.paired.change,
            "interval_95": list(self.paired.interval_95),
            "num_prompts": self.paired.num_prompts,
            "max_drop": self.gate.max_drop if self.gate else None,
            "verdict": self.verdict,
        }


def compare(settings: Mapping[str, HeldOutConfig], before: Scores, after: Scores) -> list[Comparison]:
    """Every evaluation that was made before and after, in the order of the settings.

    Raises:
        UserError: an evaluation has other prompts now.
    """
    found = []
    for name, own in settings.items():
        if name not in before or name not in after:
            continue
        if len(before[name]) != len(after[name]):
            raise UserError(
                f"evaluation {name} had {len(before[name])} prompts before and has {len(after[name])} now, and only "
                "the same prompts can be compared; give both the same data and lengths"
            )
        paired = paired_change(before[name], after[name])
        found.append(Comparison(name=name, metric=own.metric, paired=paired, gate=own.gate))
    return found


def breaches(comparisons: Sequence[Comparison], action: Literal["warn", "stop"]) -> list[Comparison]:
    """Those whose gate is breached, and calls for that action."""
    return [one for one in comparisons if one.verdict == "breach" and one.gate and one.gate.action == action]
