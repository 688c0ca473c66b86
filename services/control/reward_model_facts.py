"""What a report says of how a reward model was judged: accuracy beside its baselines, and its calibration.

It must not know how they were found, nor how they are laid out. Invariant: a fact that the run does not have is left
out, never made up.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.control.catalogue import Unit, written
from services.control.run_record import RunRecord

_NAMES: Mapping[str, tuple[str, Unit]] = {
    "majority": ("majority", "share"),
    "longer_answer": ("the longer answer", "share"),
    "length_rule": ("by length, as in the training rows", "share"),
    "training_mean": ("squared error of the training mean", "number"),
    "better_is_longer": ("where the better answer is longer", "share"),
    "better_is_shorter": ("where it is shorter", "share"),
    "balanced_accuracy": ("mean of the two", "share"),
    "residual_accuracy": ("without length's linear part", "share"),
    "lead_correlation": ("correlation of lead and length", "number"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """A reward model on rows that it did not learn, as written numbers.

    Attributes:
        judged_on: which rows these are.
        scores: what was measured, and its value.
        reliability: rows of probability, what happened, and how often.
    """

    judged_on: str
    scores: tuple[tuple[str, str], ...]
    reliability: tuple[tuple[str, str, str], ...]


def judgement(run: RunRecord) -> Judgement | None:
    """How the run's reward model was judged; None where it trained none."""
    found: Any = run.summary.get("evaluation")  # Any: the summary's JSON
    if not isinstance(found, Mapping):
        return None
    calibration = found.get("calibration", {})
    return Judgement(
        judged_on=f"{found['num_rows']} rows of {found['judged_on']}",
        scores=tuple(_scores(found)),
        reliability=tuple(
            (written(row["predicted"], "share"), written(row["happened"], "share"), written(row["count"], "count"))
            for row in calibration.get("table", ())
        ),
    )


def _scores(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:  # Any: the same
    if "accuracy" in found:
        low, high = (written(bound, "share") for bound in found["interval_95"])
        yield "accuracy (95% interval)", f"{written(found['accuracy'], 'share')} ({low} – {high})"
    if "mean_squared_error" in found:
        yield "mean squared error", written(found["mean_squared_error"])
        yield "correlation with the ratings", written(found["correlation"])
    for name, value in (found["baselines"] | found.get("length", {})).items():
        title, unit = _NAMES[name]
        yield title, written(value, unit)
    if "calibration" in found:
        yield "expected calibration error", written(found["calibration"]["expected_error"], "share")
