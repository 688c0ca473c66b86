"""Which pictures a run's metrics make: panels of a few lines each, ready to be drawn.

It must not know how a panel is drawn. Invariants: panels come in the catalogue's order; a metric that a run does not
have makes no panel; a long run is thinned, so that a panel's size has a bound.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.control.catalogue import (
    ACCURACY,
    AGREEMENT,
    GOLD,
    METRICS,
    PHASES,
    REWARD,
    REWARD_SPREAD,
    STEP_SECONDS,
    SUITE_FAMILY,
    Unit,
    describe,
    written,
)
from services.control.run_record import RunRecord
from services.control.thinning import thinned

COLOURS: Mapping[str, str] = {
    "#3987d6": "#62a8f0",
    "#cf8a14": "#e8b04a",
    "#2a9d78": "#4cc29b",
    "#bf619d": "#d98abc",
    "#7a68c4": "#a293e6",
    "#7d8794": "#a3adb9",
}
"""The colours of lines, each with its twin for a dark background; the first are those of the phases."""

_MOST_POINTS = 600
_MOST_VALUES = 4
"""More series than these have no room for their values above a picture."""
_STEP_TIME = "Seconds per step"
_PANELS_OF_EVALUATIONS = {describe(name).panel for name in (ACCURACY, GOLD, AGREEMENT)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line: its name in the panel, its points, and optionally half the width of a band around it."""

    label: str
    colour: str
    steps: Sequence[float]
    values: Sequence[float]
    spread: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One picture.

    Attributes:
        stacked: the series are parts of a whole, drawn on top of each other.
        sparse: each point counts by itself (an evaluation), so each is marked.
        smooth: the values are noisy, so that a long line is smoothed; a schedule is not.
        x_label: what the series' `steps` are, where they are not steps.
        marks: places on that axis where something happened, each with its name.
    """

    title: str
    unit: Unit
    series: Sequence[Series]
    stacked: bool = False
    sparse: bool = False
    smooth: bool = True
    x_label: str = "step"
    marks: Sequence[tuple[float, str]] = ()

    def legend(self) -> list[tuple[str, str]]:
        """Each series' colour, and its label with its last value; of a stack, and of many, the label alone."""
        if self.stacked or len(self.series) > _MOST_VALUES:
            return [(series.colour, series.label) for series in self.series]
        return [
            (series.colour, f"{series.label} {written(series.values[-1], self.unit)}".strip()) for series in self.series
        ]


def run_panels(run: RunRecord) -> list[Panel]:
    """The panels of one run: a line for each metric."""
    columns = _columns(run)
    panels = []
    for title, names in _by_panel(columns).items():
        lines = [
            _line(columns, name, label=describe(name).label if len(names) > 1 else "", colour=colour)
            for name, colour in zip(names, _colours(len(names)), strict=True)
        ]
        panels.append(_panel(title, names[0], lines))
    stack = _step_time(columns)
    return [*panels, stack] if stack else panels


def comparison_panels(runs: Sequence[RunRecord]) -> list[Panel]:
    """The panels of several runs: a line for each run, of the first metric that a panel has."""
    columns = [_columns(run) for run in runs]
    titles = {title: names[0] for own in reversed(columns) for title, names in _by_panel(own).items()}
    panels = []
    for title in sorted(titles, key=_place):
        name = titles[title]
        lines = [
            _line(own, name, label=run.name, colour=colour, band=False)
            for run, own, colour in zip(runs, columns, _colours(len(runs)), strict=True)
            if name in own
        ]
        panels.append(_panel(title, name, lines))
    return panels


@dataclass(slots=True)
class _Column:
    """One metric over the steps that have it."""

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: float, value: float) -> None:
        self.steps.append(step)
        self.values.append(value)


def _columns(run: RunRecord) -> dict[str, _Column]:
    columns: dict[str, _Column] = {}
    for row in run.all_rows:
        for name, value in row.metrics.items():
            columns.setdefault(name, _Column()).add(row.step, value)
    return columns


def _by_panel(columns: Mapping[str, _Column]) -> dict[str, list[str]]:
    """The metrics of each panel, panels and metrics in the catalogue's order."""
    panels: dict[str, list[str]] = {}
    for name in sorted(columns, key=lambda name: (_rank(name), name)):
        metric = describe(name)
        varies = len(set(columns[name].values)) > 1
        if metric.panel and (varies or not metric.only_when_it_varies):
            panels.setdefault(metric.panel, []).append(name)
    return dict(sorted(panels.items(), key=lambda panel: _place(panel[0])))


def _panel(title: str, first_name: str, lines: Sequence[Series]) -> Panel:
    metric = describe(first_name)
    is_evaluation = metric.panel in _PANELS_OF_EVALUATIONS or first_name.startswith(f"{SUITE_FAMILY}/")
    is_smooth = not (is_evaluation or metric.only_when_it_varies)
    return Panel(title=title, unit=metric.unit, series=lines, sparse=is_evaluation, smooth=is_smooth)


def _place(title: str) -> float:
    """Where a panel stands: where the catalogue first names it; suites and reward components about the accuracy."""
    titles = [metric.panel for metric in METRICS.values()]
    return titles.index(title) if title in titles else titles.index(describe(ACCURACY).panel) + 0.5


def _rank(name: str) -> int:
    names = list(METRICS)
    return names.index(name) if name in METRICS else len(names)


def _colours(count: int) -> list[str]:
    colours = list(COLOURS)
    return [colours[index % len(colours)] for index in range(count)]


def _line(columns: Mapping[str, _Column], name: str, *, label: str, colour: str, band: bool = True) -> Series:
    column = columns[name]
    spread = columns.get(REWARD_SPREAD, _Column()).values if band and name == REWARD else []
    return Series(
        label=label,
        colour=colour,
        steps=thinned(column.steps, _MOST_POINTS),
        values=thinned(column.values, _MOST_POINTS),
        spread=thinned(spread, _MOST_POINTS) if len(spread) == len(column.steps) else (),
    )


def _step_time(columns: Mapping[str, _Column]) -> Panel | None:
    """The phases on top of each other, where every step timed them."""
    num_steps = len(columns.get(STEP_SECONDS, _Column()).steps)
    phases = [phase for phase in PHASES if len(columns.get(f"seconds/{phase}", _Column()).steps) == num_steps]
    if not num_steps or not phases:
        return None
    series = [_line(columns, f"seconds/{phase}", label=phase, colour=PHASES[phase]) for phase in phases]
    return Panel(title=_STEP_TIME, unit="seconds", series=series, stacked=True)
