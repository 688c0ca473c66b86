"""Everything that a run left in its folder, read back.

It must not know how it is shown. Invariant: only the metrics must be there; a run that is still going, or that died,
is read as far as it went.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from services.contracts.errors import UserError
from services.contracts.records import Json
from services.control.catalogue import ACCURACY, ALARM_FAMILY
from services.control.event_log import EVENTS_FILE
from services.control.metrics import MetricsRow, SampleRecord, read_metrics, read_samples
from services.control.run_folder import CONFIG_FILE, METRICS_FILE, SUMMARY_FILE


@dataclass(frozen=True, kw_only=True, slots=True)
class RaisedAlarm:
    """An alarm of a run, as it was told, and what was done."""

    step: int
    name: str
    text: str
    action: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One run as its files tell it.

    Attributes:
        name: what the configuration calls it, else its folder's name.
        config_text: the resolved configuration, as YAML; empty where the file is missing.
        summary: empty while the run goes on, or when it died.
        resumed_after: the step after which each resume went on.
        failures: why prompts failed for good.
        evaluations: metrics of the evaluations before the first step and after the last, with their steps; the others
            are in the rows.
        alarms: in order of steps.
    """

    name: str
    rows: Sequence[MetricsRow]
    samples: Sequence[SampleRecord] = ()
    summary: Mapping[str, Json] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)  # Any: whatever the YAML holds
    config_text: str = ""
    resumed_after: Sequence[int] = ()
    failures: Sequence[str] = ()
    evaluations: Sequence[MetricsRow] = ()
    alarms: Sequence[RaisedAlarm] = ()

    @property
    def all_rows(self) -> list[MetricsRow]:
        """The rows and the evaluations around them, in order of steps."""
        return sorted([*self.evaluations, *self.rows], key=lambda row: row.step)


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder.

    Raises:
        UserError: there is no such folder, no step in it, or a file that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder of a run, as run.dir names it")
    rows = read_metrics(folder)
    if not rows:
        raise UserError(f"{folder / METRICS_FILE} has no step yet; give a run that has finished its first step")
    config_text = _text(folder / CONFIG_FILE)
    config = _parse_config(config_text, folder / CONFIG_FILE)
    summary = _parse_summary(_text(folder / SUMMARY_FILE), folder / SUMMARY_FILE)
    events = _events(folder / EVENTS_FILE)
    return RunRecord(
        name=_name(config) or folder.resolve().name,
        rows=rows,
        samples=read_samples(folder),
        summary=summary,
        config=config,
        config_text=config_text,
        resumed_after=[int(event["step"]) for event in events if event.get("event") == "resumed"],
        failures=[str(event.get("reason")) for event in events if event.get("event") == "failed"],
        evaluations=_evaluations(events) or _accuracies(summary, rows[-1].step),
        alarms=_alarms(events, rows),
    )


def _evaluations(events: Sequence[Mapping[str, Any]]) -> list[MetricsRow]:  # Any: whatever JSON holds
    """The last that was made at each step."""
    found = {int(event["step"]): event["metrics"] for event in events if event.get("event") == "evaluated"}
    return [MetricsRow(step=step, time_s=0.0, metrics=found[step]) for step in sorted(found)]


def _accuracies(summary: Mapping[str, Json], last_step: int) -> list[MetricsRow]:
    """What the summary says of them, of a run that did not write them down by themselves."""
    found = {0: summary.get("accuracy_before"), last_step: summary.get("accuracy_after")}
    return [
        MetricsRow(step=step, time_s=0.0, metrics={ACCURACY: accuracy})
        for step, accuracy in found.items()
        if isinstance(accuracy, int | float)
    ]


def _alarms(events: Sequence[Mapping[str, Any]], rows: Sequence[MetricsRow]) -> list[RaisedAlarm]:  # Any: as above
    """Those of which the metrics know too: a resumed run makes some steps again, without what was raised there."""
    metrics = {row.step: row.metrics for row in rows}
    found = {
        (event["step"], event["alarm"]): RaisedAlarm(
            step=event["step"], name=event["alarm"], text=event["text"], action=event["action"]
        )
        for event in events
        if event.get("event") == "alarm" and f"{ALARM_FAMILY}/{event['alarm']}" in metrics.get(event["step"], {})
    }
    return [found[key] for key in sorted(found)]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _name(config: Mapping[str, Any]) -> str:  # Any: whatever the YAML holds
    run = config.get("run")
    return str(run.get("name") or "") if isinstance(run, Mapping) else ""


def _parse_config(text: str, path: Path) -> Mapping[str, Any]:  # Any: whatever the YAML holds
    try:
        config = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}; mend it, or delete it") from error
    return config if isinstance(config, Mapping) else {}


def _parse_summary(text: str, path: Path) -> Mapping[str, Json]:
    try:
        summary = json.loads(text or "{}")
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}; delete it, and the report does without") from error
    return summary if isinstance(summary, dict) else {}


def _events(path: Path) -> list[dict[str, Any]]:  # Any: whatever JSON holds
    """The ledger's events; a torn line is left out."""
    events = []
    for line in _text(path).splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events
