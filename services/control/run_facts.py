"""What a report says of a run in words and numbers: headlines, phases, samples, statistics.

It must not know how they are laid out. Invariant: a fact that the run does not have is left out, never made up.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from services.contracts.records import StepReward
from services.control.catalogue import (
    ACCURACY,
    GOLD,
    PHASES,
    REWARD,
    STEP_SECONDS,
    Unit,
    clock,
    describe,
    phase_shares,
    shown,
    written,
)
from services.control.evaluate_config import MAIN
from services.control.metrics import MetricsRow, SampleRecord
from services.control.run_record import RunRecord
from services.control.suite_facts import metric_name, suite_rows
from services.control.thinning import finite_mean

_MOST_SAMPLES = 6
"""Completions shown of the first and of the last step."""
_LONGEST_IN_PIECES = 4000
"""Characters of a completion that are cut into its steps."""
_END_STEPS = 5
"""Steps whose mean stands for the beginning, and for the end, of a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """One number that sums up a run; `before` where it is a change."""

    label: str
    value: str
    before: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """What one phase takes of a median step."""

    name: str
    colour: str
    share: float
    seconds: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistic:
    """One metric over the whole run, as written numbers."""

    title: str
    first: str
    last: str
    least: str
    greatest: str


def subtitle(run: RunRecord) -> str:
    """What was run, in one line."""
    model, learner = run.config.get("model"), run.config.get("learner")
    parts = (
        str(learner.get("algorithm") or "").upper() if isinstance(learner, Mapping) else "",
        str(model.get("path") or "") if isinstance(model, Mapping) else "",
        "1 step" if run.rows[-1].step == 1 else f"{run.rows[-1].step:,} steps",
        "" if run.summary else "not finished",
    )
    return " · ".join(part for part in parts if part)


def headlines(run: RunRecord) -> list[Headline]:
    """The numbers that someone asks for first, what was gained before what it cost."""
    summary = run.summary
    peak_bytes = summary.get("peak_memory_bytes")
    lines = (
        _change("held-out accuracy", ACCURACY, summary.get("accuracy_before"), summary.get("accuracy_after")),
        *(
            _change(f"{row['name']} {row['metric']}", metric_name(row), row["before"], row["after"])
            for row in suite_rows(run)
            if row["name"] != MAIN
        ),
        _change("gold reward", GOLD, *_first_and_last(_column(run.all_rows, GOLD))),
        _change("reward", REWARD, *_ends(_column(run.rows, REWARD))),
        _change("loss", "loss", *_ends(_column(run.rows, "loss"))),
        _fact("steps", run.rows[-1].step, "count"),
        _fact("samples", summary.get("num_samples"), "count"),
        Headline(label="time", value=clock(_finite(summary.get("seconds")) or run.rows[-1].time_s)),
        _fact("until the first step", summary.get("seconds_to_first_step"), "seconds"),
        _fact("samples/s", _median(run.rows, "samples_per_second"), "rate"),
        _fact("GiB at the peak", peak_bytes / 2**30 if isinstance(peak_bytes, int | float) else None),
        _fact("worst sampler gap", summary.get("sampler_gap_worst_step")),
    )
    return [line for line in lines if line]


def median_phases(rows: Sequence[MetricsRow]) -> list[Phase]:
    """The phases of a median step, and what is left of it; none when no step timed them."""
    medians = {name: _median(rows, name) for name in (STEP_SECONDS, *(f"seconds/{phase}" for phase in PHASES))}
    seconds = {name: value for name, value in medians.items() if value is not None}
    return [
        Phase(
            name=name,
            colour=PHASES.get(name, ""),
            share=share,
            seconds=shown(STEP_SECONDS, seconds.get(f"seconds/{name}", share * seconds.get(STEP_SECONDS, 0.0))),
        )
        for name, share in phase_shares(seconds).items()
    ]


def early_and_late(samples: Sequence[SampleRecord]) -> list[tuple[int, list[SampleRecord]]]:
    """The samples of the first step that has any and of the last, each with its step."""
    steps = sorted({samples[0].step, samples[-1].step}) if samples else []
    return [(step, [sample for sample in samples if sample.step == step][:_MOST_SAMPLES]) for step in steps]


def pieces(sample: SampleRecord) -> list[tuple[str, StepReward | None]]:
    """The completion, cut where its steps begin and end, each piece with the step that it is; far behind, in one."""
    found: list[tuple[str, StepReward | None]] = []
    end = 0
    for step in (step for step in sample.steps if step.end <= _LONGEST_IN_PIECES):
        found += [(sample.completion[end : step.start], None), (sample.completion[step.start : step.end], step)]
        end = step.end
    return [piece for piece in (*found, (sample.completion[end:], None)) if piece[0]]


def statistics(rows: Sequence[MetricsRow]) -> list[Statistic]:
    """Every metric of the run, in alphabetical order of title."""
    names = sorted({name for row in rows for name in row.metrics}, key=lambda name: describe(name).title.lower())
    return [_statistic(name, [value for value in _column(rows, name) if math.isfinite(value)]) for name in names]


def _statistic(name: str, values: Sequence[float]) -> Statistic:
    chosen = (values[0], values[-1], min(values), max(values)) if values else (math.nan,) * 4
    first, last, least, greatest = (shown(name, value) for value in chosen)
    return Statistic(title=describe(name).title, first=first, last=last, least=least, greatest=greatest)


def _column(rows: Sequence[MetricsRow], name: str) -> list[float]:
    return [row.metrics[name] for row in rows if name in row.metrics]


def _ends(values: Sequence[float]) -> tuple[float | None, float]:
    """The mean of the first few values and of the last few; of each half when there are fewer; of one, only itself."""
    count = min(_END_STEPS, max(1, len(values) // 2))
    return finite_mean(values[:count]) if len(values) > 1 else None, finite_mean(values[-count:])


def _first_and_last(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Of measurements that each stand for themselves; the first only where it is another."""
    return (values[0] if len(values) > 1 else None, values[-1]) if values else (None, None)


def _median(rows: Sequence[MetricsRow], name: str) -> float | None:
    values = [value for value in _column(rows, name) if math.isfinite(value)]
    return median(values) if values else None


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _change(label: str, metric: str, before: object, after: object) -> Headline | None:
    start, end = _finite(before), _finite(after)
    if end is None:
        return None
    return Headline(label=label, value=shown(metric, end), before="" if start is None else shown(metric, start))


def _fact(label: str, value: object, unit: Unit = "number") -> Headline | None:
    number = _finite(value)
    return None if number is None else Headline(label=label, value=written(number, unit))
