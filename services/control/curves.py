"""Draws panels: all of them on one page as a PNG, or each as an SVG that takes its colours from the page around it.

It must not know what a panel is about. Invariant: the same code draws both, so the picture and the report agree.
"""

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from services.control.catalogue import Unit
from services.control.panels import COLOURS, Panel, Series
from services.control.thinning import smoothed

_INK, _MUTED, _GRID = "#1c2430", "#667080", "#e3e7ec"
PAGE_COLOURS: Mapping[str, str] = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--grid)",
    **{colour: f"var(--line-{index})" for index, colour in enumerate(COLOURS)},
}
"""What each colour of the drawing is called in the page's style sheet."""

_STYLE: Mapping[str, Any] = {  # Any: what matplotlib takes
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "trireme",
}
_PANEL_INCHES = (3.3, 2.15)
_SVG_INCHES = (3.6, 1.9)
_HEAD_INCHES = 0.75
_DOTS_PER_INCH = 150
_FEW_POINTS = 30
"""Up to this many points each is marked, and nothing is smoothed."""


def draw_page(panels: Sequence[Panel], path: Path, *, title: str, subtitle: str) -> None:
    """Write all panels as one PNG, in rows from left to right."""
    columns = 3 if len(panels) in (5, 6) else min(4, max(2, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    width, height = _PANEL_INCHES
    with matplotlib.rc_context(dict(_STYLE)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # A run may be named in a script that the font lacks.
        size = (width * columns, height * rows + _HEAD_INCHES)
        head, margin = _HEAD_INCHES / size[1], 0.14 / size[0]
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, rect=(0, 0, 1, 1 - head))
        figure = Figure(figsize=size, facecolor="white", layout=layout)
        figure.text(margin, 1 - 0.35 * head, title, fontsize=14, weight="bold", va="center")
        figure.text(margin, 1 - 0.68 * head, subtitle, fontsize=9, color=_MUTED, va="center")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw(axes, panel)
            _title(axes, panel)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes in grid.flat[max(0, len(panels) - columns) : len(panels)]:
            axes.set_xlabel("step", loc="right", fontsize=7.5, color=_MUTED, labelpad=1)
        figure.savefig(path, dpi=_DOTS_PER_INCH)


def draw_svg(panel: Panel) -> str:
    """One panel without its title, as an SVG element as wide as its place in the page."""
    with matplotlib.rc_context(dict(_STYLE)):
        figure = Figure(figsize=_SVG_INCHES, layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02))
        _draw(figure.subplots(), panel)
        stream = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    svg = stream.getvalue()
    return _for_page(svg[svg.index("<svg") :].strip(), label=panel.title)


def _for_page(svg: str, *, label: str) -> str:
    """The drawing as part of a page: its colours and font, and no style or name that could meet another's."""
    svg = re.sub(r"<style.*?</style>", "", svg, count=1, flags=re.DOTALL)
    svg = svg.replace("font-family: 'DejaVu Sans'; ", "")
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda match: match.group() if match.group(1) in used else "", svg)
    for colour, variable in PAGE_COLOURS.items():
        svg = svg.replace(colour, variable)
    return re.sub(r'<svg (.*?)width="\S+" height="\S+"', rf'<svg role="img" aria-label="{label}" \1', svg, count=1)


def _draw(axes: Axes, panel: Panel) -> None:
    if panel.stacked:
        _draw_stack(axes, panel)
    else:
        for series in panel.series:
            _draw_line(axes, series, marked=panel.sparse or len(series.steps) <= _FEW_POINTS, smooth=panel.smooth)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, panel.unit)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=panel.x_label == "step", steps=[1, 2, 5, 10]))
    axes.margins(y=0.08)
    steps = [step for series in panel.series for step in series.steps]
    steps += [place for place, _ in panel.marks]
    margin = max(0.02 * (max(steps) - min(steps)), 0.0 if min(steps) < max(steps) else 1.0)
    axes.set_xlim(min(steps) - margin, max(steps) + margin)
    for place, name in panel.marks:
        _draw_mark(axes, place, name)
    if panel.x_label != "step":
        axes.set_xlabel(panel.x_label, loc="right", fontsize=7.5, color=_MUTED, labelpad=1)
    if not any(math.isfinite(value) for series in panel.series for value in series.values):
        axes.set_yticks([])


def _draw_line(axes: Axes, series: Series, *, marked: bool, smooth: bool) -> None:
    window = 1 if marked or not smooth else max(3, len(series.values) // 20)
    values = smoothed(series.values, window)
    if series.spread:
        spread = smoothed(series.spread, window)
        low = [value - half for value, half in zip(values, spread, strict=True)]
        high = [value + half for value, half in zip(values, spread, strict=True)]
        axes.fill_between(series.steps, low, high, color=series.colour, alpha=0.13, linewidth=0)
    if window > 1:
        axes.plot(series.steps, series.values, color=series.colour, linewidth=0.7, alpha=0.35)
    (line,) = axes.plot(series.steps, values, color=series.colour, linewidth=1.7, solid_capstyle="round")
    line.set(marker="o" if marked else "", markersize=3.2)


def _draw_mark(axes: Axes, place: float, name: str) -> None:
    """A line from top to bottom, with its name along it."""
    axes.axvline(place, color=_INK, linewidth=1.0, linestyle=(0, (3, 3)))
    beside: dict[str, Any] = {"textcoords": "offset points", "va": "top", "ha": "right"}  # Any: arguments
    where = ((place, 1), (-2, -2), ("data", "axes fraction"))
    axes.annotate(name, where[0], where[1], xycoords=where[2], rotation=90, fontsize=7.5, color=_INK, **beside)


def _draw_stack(axes: Axes, panel: Panel) -> None:
    steps = panel.series[0].steps
    window = max(1, len(steps) // 20)
    layers = [[0.0 if math.isnan(v) else v for v in smoothed(series.values, window)] for series in panel.series]
    colours = [series.colour for series in panel.series]
    if len(steps) == 1:  # An area needs two steps.
        steps, layers = [steps[0] - 0.3, steps[0] + 0.3], [layer * 2 for layer in layers]
    axes.stackplot(steps, layers, colors=colours, alpha=0.9, linewidth=0)
    axes.set_ylim(bottom=0)


def _title(axes: Axes, panel: Panel) -> None:
    """The title, and below it each series' last value in its colour."""
    above: dict[str, Any] = {"textcoords": "offset points", "va": "bottom", "annotation_clip": False}  # Any: arguments
    axes.annotate(panel.title, (0, 1), (0, 15), xycoords="axes fraction", fontsize=9.5, weight="bold", **above)
    place: Any = None  # Any: an artist of matplotlib
    for colour, text in panel.legend():
        where = ((1, 0), (8, 0), place) if place else ((0, 1), (0, 3), "axes fraction")
        place = axes.annotate(text, where[0], where[1], xycoords=where[2], fontsize=8, color=colour, **above)
        place.set_in_layout(False)  # A long legend must not narrow the panel.


def _tick(value: float, unit: Unit) -> str:
    if unit == "share":
        return f"{100 * value:.4g}%"
    if unit == "seconds":
        return f"{value:.4g} s"
    if unit == "bytes":
        return f"{value / 2**30:.4g} GiB"
    if unit == "rate" and abs(value) >= 1000:
        return f"{value / 1000:.4g}k"
    return f"{value:.4g}"
