"""What a report says of held-out evaluations before and after: how far each has moved, and what its gate makes of it.

It must not know how they were compared, nor how they are laid out. Invariant: a fact that the run does not have is left
out, never made up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.control.catalogue import SUITE_FAMILY, shown
from services.control.evaluate_config import MAIN
from services.control.run_record import RunRecord

_VERDICTS: Mapping[str, str] = {"breach": "breach", "holds": "holds", "not_gated": "–"}


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteFacts:
    """One evaluation, as written numbers."""

    name: str
    metric: str
    before: str
    after: str
    change: str
    num_prompts: int
    may_fall: str
    verdict: str


def suite_facts(run: RunRecord) -> list[SuiteFacts]:
    """Every evaluation that was made before the first step and after the last; none of a run that goes on."""
    return [_facts(row) for row in suite_rows(run)]


def suite_rows(run: RunRecord) -> list[Mapping[str, Any]]:  # Any: the summary's JSON
    """What the summary says of them."""
    found: Any = run.summary.get("evaluations", [])  # Any: the same
    return list(found)


def metric_name(row: Mapping[str, Any]) -> str:  # Any: the same
    """What the row's metric is called in the run's metrics."""
    return f"{MAIN if row['name'] == MAIN else SUITE_FAMILY + '/' + row['name']}/{row['metric']}"


def _facts(row: Mapping[str, Any]) -> SuiteFacts:  # Any: the same
    metric = metric_name(row)
    low, high = (shown(metric, bound) for bound in row["interval_95"])
    return SuiteFacts(
        name=row["name"],
        metric=row["metric"],
        before=shown(metric, row["before"]),
        after=shown(metric, row["after"]),
        change=f"{shown(metric, row['change'])} ({low} to {high})",
        num_prompts=row["num_prompts"],
        may_fall="–" if row["max_drop"] is None else shown(metric, row["max_drop"]),
        verdict=_VERDICTS[row["verdict"]],
    )
