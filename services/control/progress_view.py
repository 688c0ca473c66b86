"""What a watcher is shown, drawn from a snapshot: one panel, or one line.

It must not know where it is printed or when. Invariant: a number that a run does not have is left out, never made up.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import ROUNDED
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from services.control.catalogue import (
    ACCURACY,
    PHASES,
    REWARD,
    REWARD_SPREAD,
    STEP_SECONDS,
    clock,
    describe,
    phase_shares,
    shown,
)
from services.control.thinning import thinned

_BARS = "▁▂▃▄▅▆▇█"
_SPARKLINE_WIDTH = 32

_FACTS = (
    (STEP_SECONDS, "samples_per_second", "tokens_per_second", "completion_tokens/mean"),
    ("kl/reference", "entropy", "clip_fraction", "explained_variance"),
    ("policy_loss", "value_loss", "gradient_norm/policy", "sampler_gap/mean"),
)
"""The numbers below the rewards, by column."""

_LINE = (
    REWARD,
    "loss",
    "kl/reference",
    "entropy",
    "completion_tokens/mean",
    "sampler_gap/mean",
    "samples_per_second",
    "tokens_per_second",
    STEP_SECONDS,
)
"""The numbers of a plain line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """Everything there is to show of a run at one moment.

    Attributes:
        metrics: the latest value of each.
        rewards: the reward mean of each step since the command began.
        accuracies: each evaluation; the last is of `accuracy_step`.
        elapsed_s: since the command began.
        left_s: until the last step; None while the pace is not known.
    """

    title: str
    step: int
    total_steps: int
    metrics: Mapping[str, float]
    rewards: Sequence[float] = ()
    accuracies: Sequence[float] = ()
    accuracy_step: int = 0
    elapsed_s: float = 0.0
    left_s: float | None = None


def panel(snapshot: Snapshot) -> RenderableType:
    """The live view."""
    parts: list[RenderableType] = [_bar(snapshot)]
    curves, facts = _curves(snapshot), _facts(snapshot.metrics)
    shares = phase_shares(snapshot.metrics)
    if curves.row_count:
        parts += ["", curves]
    if facts:
        parts += ["", Columns(facts, padding=(0, 4))]
    if shares:
        parts += ["", _ShareBar(shares), _share_legend(shares)]
    return Panel(
        Group(*parts),
        title=Text.assemble(" ", (snapshot.title, "bold"), " "),
        title_align="left",
        subtitle=_subtitle(snapshot.metrics),
        subtitle_align="right",
        box=ROUNDED,
        border_style="dim",
        padding=(1, 2),
    )


def plain_line(snapshot: Snapshot, *, is_evaluated: bool) -> str:
    """One step as a line of text; the accuracy only when this step was evaluated."""
    width = len(str(snapshot.total_steps))
    metrics = snapshot.metrics
    parts = [f"step {snapshot.step:>{width}}/{snapshot.total_steps}"]
    parts += [f"{describe(name).title} {shown(name, metrics[name]):>6}" for name in _LINE if name in metrics]
    if is_evaluated:
        parts.insert(2, f"accuracy {shown(ACCURACY, metrics[ACCURACY])}")
    if snapshot.left_s is not None:
        parts.append(f"{clock(snapshot.left_s)} left")
    return "   ".join(parts)


def sparkline(values: Sequence[float], *, width: int) -> str:
    """The values as a row of little bars from their least to their greatest; a gap where one is not finite."""
    resampled = thinned(values, width)
    finite = [value for value in resampled if math.isfinite(value)]
    if not finite:
        return " " * len(resampled)
    low, span = min(finite), max(finite) - min(finite)
    heights = ((value - low) / span if span else 0.5 for value in resampled)
    return "".join(_BARS[min(7, int(height * 8))] if math.isfinite(height) else " " for height in heights)


def _bar(snapshot: Snapshot) -> RenderableType:
    grid = Table.grid(expand=True, padding=(0, 2))
    for ratio in (None, 1, None, None):
        grid.add_column(ratio=ratio, no_wrap=True)
    share = snapshot.step / snapshot.total_steps
    left = "" if snapshot.left_s is None else f"{clock(snapshot.left_s)} left"
    grid.add_row(
        Text.assemble("step ", (f"{snapshot.step}", "bold"), (f"/{snapshot.total_steps}", "dim")),
        ProgressBar(total=1.0, completed=share, complete_style=PHASES["learning"], finished_style=PHASES["learning"]),
        f"{share:.0%}",
        Text.assemble(f"{clock(snapshot.elapsed_s)} ", (f"elapsed  {left}" if left else "elapsed", "dim")),
    )
    return grid


def _curves(snapshot: Snapshot) -> Table:
    """Reward and accuracy, large, each with its history."""
    metrics = snapshot.metrics
    grid = Table.grid(padding=(0, 2))
    if REWARD in metrics:
        spread = f"± {shown(REWARD_SPREAD, metrics[REWARD_SPREAD])}" if REWARD_SPREAD in metrics else ""
        grid.add_row("reward", _value(REWARD, metrics, style="bold"), _History(snapshot.rewards), Text(spread, "dim"))
    if ACCURACY in metrics:
        when = Text(f"after step {snapshot.accuracy_step}", "dim")
        grid.add_row("accuracy", _value(ACCURACY, metrics, style="bold"), _History(snapshot.accuracies), when)
    return grid


class _History:
    """A sparkline as wide as there is room, up to a limit, so that the newest value always shows."""

    def __init__(self, values: Sequence[float]) -> None:
        self._values = values

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, _SPARKLINE_WIDTH).clamp(max_width=options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, _SPARKLINE_WIDTH)
        yield Text(sparkline(self._values, width=width).ljust(width), style=PHASES["learning"])


def _facts(metrics: Mapping[str, float]) -> list[Table]:
    """One small table for each column that has a number."""
    tables = []
    for names in _FACTS:
        present = [name for name in names if name in metrics]
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(justify="right", no_wrap=True, min_width=7)
        for name in present:
            table.add_row(describe(name).title, _value(name, metrics))
        tables += [table] if present else []
    return tables


def _value(name: str, metrics: Mapping[str, float], *, style: str = "") -> Text:
    value = metrics[name]
    return Text(shown(name, value), style=style if math.isfinite(value) else "bold red")


def _subtitle(metrics: Mapping[str, float]) -> Text | None:
    parts = [
        f"{describe(name).title} {shown(name, metrics[name])}"
        for name in ("policy_version", "staleness/mean")
        if name in metrics
    ]
    return Text(f" {' · '.join(parts)} ", style="dim") if parts else None


class _ShareBar:
    """A bar as wide as there is room, cut into the phases of a step."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        self._shares = shares

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        position, end = 0.0, 0
        for phase, share in self._shares.items():
            start, position = end, position + share * options.max_width
            end = round(position)
            yield Segment("█" * (end - start), Style.parse(PHASES.get(phase, "bright_black")))
        yield Segment.line()


def _share_legend(shares: Mapping[str, float]) -> Columns:
    return Columns(
        [
            Text.assemble(("■ ", PHASES.get(phase, "bright_black")), (phase, "dim"), f" {share:.0%}")
            for phase, share in shares.items()
        ],
        padding=(0, 3),
    )
