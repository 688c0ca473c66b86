"""Pictures of the reward that trains against the reward that counts: over the steps, and over the distance travelled.

It must not know how a panel is drawn. Both rewards are shown as their change since the first evaluation, in standard
deviations of the completions at that time, because their scales have nothing to do with each other. Invariant: every
point is an evaluation in which both were measured on the same completions.
"""

import math
from collections.abc import Callable, Sequence

from services.control.catalogue import GOLD, GOLD_SPREAD, KL, PROXY, PROXY_SPREAD
from services.control.metrics import MetricsRow
from services.control.panels import COLOURS, Panel, Series
from services.control.run_record import RaisedAlarm, RunRecord

_LINES = (("proxy", PROXY, PROXY_SPREAD), ("gold", GOLD, GOLD_SPREAD))


def gold_panels(run: RunRecord) -> list[Panel]:
    """None where the run has no gold reward; the second only where the KL was measured."""
    rows = [row for row in run.all_rows if GOLD in row.metrics]
    if not rows:
        return []
    by_step = _panel("Over the steps", rows, lambda row: row.step, x_label="step")
    marked = Panel(title=by_step.title, unit="number", series=by_step.series, sparse=True, marks=_marks(run.alarms))
    kl = {0: 0.0} | {row.step: row.metrics[KL] for row in run.rows if math.isfinite(row.metrics.get(KL, math.nan))}
    reached = [row for row in rows if row.step in kl]
    if len(kl) == 1 or not reached:
        return [marked]
    return [marked, _panel("Over the KL to the reference", reached, lambda row: kl[row.step], x_label="nats per token")]


def _panel(title: str, rows: Sequence[MetricsRow], place: Callable[[MetricsRow], float], *, x_label: str) -> Panel:
    series = [
        Series(
            label=label,
            colour=colour,
            steps=[place(row) for row in rows],
            values=_changes([row.metrics[name] for row in rows], [row.metrics[spread] for row in rows]),
        )
        for (label, name, spread), colour in zip(_LINES, COLOURS, strict=False)
    ]
    return Panel(title=title, unit="number", series=series, sparse=True, x_label=x_label)


def _changes(values: Sequence[float], spreads: Sequence[float]) -> list[float]:
    """In units of the first spread that there is; of 1 where completions never differed."""
    unit = next((spread for spread in spreads if spread > 0), 1.0)
    return [(value - values[0]) / unit for value in values]


def _marks(alarms: Sequence[RaisedAlarm]) -> list[tuple[float, str]]:
    """Where each alarm was raised first."""
    first: dict[str, int] = {}
    for alarm in alarms:
        first.setdefault(alarm.name, alarm.step)
    return [(step, name) for name, step in first.items()]
