"""Line charts in rows, with bands, as one small SVG for the documents.

It must not know what is drawn. Invariant: the same numbers give the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

COLOURS = ("#3987d6", "#cf8a14", "#2a9d78", "#bf619d")
_INK, _MUTED, _GRID = "#1c2430", "#667080", "#e3e7ec"
_INCHES = (4.4, 2.9)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line; `low` and `high` are the edges of a band around it."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One picture; `log` spaces both axes by factors."""

    title: str
    x: str
    lines: Sequence[Line]
    log: bool = False


def draw(charts: Sequence[Chart], path: Path, *, num_rows: int = 1) -> None:
    """Write the charts from left to right, in rows of one length. Raises ValueError for more lines than colours."""
    style = {"font.size": 9, "text.color": _INK, "svg.fonttype": "none", "svg.hashsalt": "trireme"}
    with matplotlib.rc_context(style):
        num_columns = len(charts) // num_rows
        size = (_INCHES[0] * num_columns, _INCHES[1] * num_rows)
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        for axes, chart in zip(figure.subplots(num_rows, num_columns, squeeze=False).flat, charts, strict=True):
            _draw(axes, chart)
        figure.savefig(path, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))


def _draw(axes: Axes, chart: Chart) -> None:
    if len(chart.lines) > len(COLOURS):
        raise ValueError(f"{chart.title}: {len(chart.lines)} lines, and there are {len(COLOURS)} colours")
    for colour, line in zip(COLOURS, chart.lines, strict=False):
        if line.low:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(line.x, line.y, color=colour, linewidth=1.6, marker="o", markersize=2.5, label=line.label)
    if chart.log:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(LogLocator(base=4))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_title(chart.title, fontsize=10, loc="left", color=_INK)
    axes.set_xlabel(chart.x, color=_MUTED)
    axes.grid(axis="y", color=_GRID)
    axes.tick_params(colors=_MUTED, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.legend(frameon=False, fontsize=8)
