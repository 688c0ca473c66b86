"""Goes through the stages of a recipe: which are done, which go on, and which begin.

It must not know what a command does, nor how its process is run. Invariants: a stage is done when its record says so,
and the record is written after its command ended well and at its end; a stage that is done is not run again, and is
refused where its configuration is another by now; one that is done or to be resumed is refused where a stage that it
was made from is another; nothing starts before every stage was looked at.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from services.contracts.errors import UserError
from services.contracts.records import Json
from services.control import run_folder
from services.control.pipeline_config import Reference, Stage
from services.control.stage_process import Ended

RECORD_FILE = "stage.json"
BEGUN_FILE = "begun.json"
"""Which runs of earlier stages a stage was begun from; beside the folder's run, until that is done."""

State = Literal["finished", "begun", "new"]
Record = Mapping[str, Any]  # Any: JSON
Run = Callable[[Sequence[str]], Ended]
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A stage that belongs to this start of the pipeline, and how far it is."""

    stage: Stage
    state: State


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEnded:
    """The stage at which a pipeline stopped before its end, how its command ended, and whether the stage is done."""

    stage: Stage
    ended: Ended
    is_done: bool


def choose(stages: Sequence[Stage], *, first: str | None, last: str | None) -> Sequence[Stage]:
    """The stages from `first` to `last`, both included. Raises `UserError` where there are no such stages."""
    names = [stage.name for stage in stages]
    for switch, name in (("--from", first), ("--until", last)):
        if name is not None and name not in names:
            raise UserError(f"{switch}: there is no stage {name!r}; there are {', '.join(names)}")
    begin = names.index(first) if first else 0
    end = names.index(last) if last else len(names) - 1
    if begin > end:
        raise UserError(f"--from {first} comes after --until {last}; the order is {', '.join(names)}")
    return stages[begin : end + 1]


def plan(stages: Sequence[Stage], chosen: Sequence[Stage]) -> list[Planned]:
    """How far each chosen stage is.

    Raises:
        UserError: a stage that is done was made with other settings or from another run of a stage before it, or a
            chosen one reads from a stage that is neither done nor chosen.
    """
    records = {stage.name: _read_record(stage.folder) for stage in stages}
    planned = []
    for stage in chosen:
        record = records[stage.name]
        if record is None:
            _check_inputs(stage, records, {one.name for one in chosen})
            state: State = "begun" if run_folder.has_run(stage.folder) else "new"
            if stage.command.keeps_rows or (state == "begun" and stage.command.resumes):
                _check_beginning(stage, records)
        else:
            _check_record(stage, record, records)
            state = "finished"
        planned.append(Planned(stage=stage, state=state))
    return planned


def look_ahead(planned: Sequence[Planned], stages: Sequence[Stage], *, tell: Tell) -> None:
    """Check model and data of every stage that is still to run, as far as they can be known; nothing is started.

    A model that an earlier stage will make is stood for by the one that the stage begins from, whose tokenizer and
    length it has.

    Raises:
        UserError: naming the stage, with the value, the rule and the fix.
    """
    by_name = {stage.name: stage for stage in stages}
    for one in planned:
        stage = one.stage
        if one.state == "finished":
            tell(f"{stage.name}: finished")
            continue
        how = "to be resumed" if one.state == "begun" and stage.command.resumes else "to be run"
        unknown: set[str] = set()
        config = stage.with_references(lambda reference: _stand_in(reference, by_name, unknown))  # noqa: B023 - at once
        if unknown or stage.command.check is None:
            what = f"; its data is known once {' and '.join(sorted(unknown))} is there" if unknown else ""
            tell(f"{stage.name}: {how}, settings checked{what}")
            continue
        try:
            stage.command.check(config)
        except UserError as error:
            raise UserError(f"stage {stage.name}: {error}") from error
        tell(f"{stage.name}: {how}, settings, model and data checked")


def run_stages(planned: Sequence[Planned], *, run: Run, tell: Tell) -> StageEnded | None:
    """Run what is not done, in order. Returns where it stopped before the end, or None."""
    for one in planned:
        stage = one.stage
        if one.state == "finished":
            tell(f"stage {stage.name}: finished before, skipped")
            continue
        resume = one.state == "begun" and stage.command.resumes
        tell(f"stage {stage.name}: trireme {stage.command_name}{', resumed' if resume else ''}")
        stage.folder.mkdir(parents=True, exist_ok=True)
        file = stage.folder.with_suffix(".yaml")
        sections = stage.config.model_dump(mode="json", exclude_unset=True)
        file.write_text(yaml.safe_dump(sections, sort_keys=False, allow_unicode=True))
        if not resume:
            run_folder.write_summary(stage.folder, {"made_from": _inputs_of(stage)}, name=BEGUN_FILE)
        started = time.monotonic()
        ended = run([stage.command_name, str(file), *(["--resume"] if resume else [])])
        # A run that was drained ends well, too, and is to go on: only at its end it exports.
        is_done = ended.code == 0 and (not stage.command.resumes or (stage.folder / run_folder.EXPORT).exists())
        if is_done:
            _write_record(stage, seconds=time.monotonic() - started)
        if not is_done or ended.interrupted:
            return StageEnded(stage=stage, ended=ended, is_done=is_done)
    return None


def summarise(stages: Sequence[Stage]) -> list[dict[str, Json]]:
    """Of each stage that is done its name, command and seconds, and what its command found."""
    rows: list[dict[str, Json]] = []
    for stage in stages:
        record = _read_record(stage.folder)
        if record is not None:
            found = _read_json(stage.folder / stage.command.summary) or {}
            kept = {name: found[name] for name in _SHOWN if found.get(name) is not None}
            if "accuracy" in found:
                kept["accuracy_after"] = found["accuracy"]
            rows.append({"name": stage.name, "command": stage.command_name, **kept, "seconds": record["seconds"]})
    return rows


_SHOWN = ("num_steps", "num_samples", "num_kept", "accuracy_before", "accuracy_after")


def _check_inputs(stage: Stage, records: Mapping[str, Record | None], chosen: set[str]) -> None:
    for name in stage.inputs:
        if records[name] is None and name not in chosen:
            raise UserError(
                f"stage {stage.name} reads what {name} makes, and that is not finished; begin with --from {name}, or "
                "leave --from out"
            )


def _check_beginning(stage: Stage, records: Mapping[str, Record | None]) -> None:
    """Raise `UserError` where a stage would go on from what is no longer there."""
    begun = _read_json(stage.folder / BEGUN_FILE) or {"made_from": {}}
    gone = _gone_inputs(begun, records)
    if gone:
        raise UserError(
            f"stage {stage.name} is not finished, and was begun from a run of {gone[0]} that is no longer there; "
            f"delete {stage.folder} to run it anew"
        )


def _gone_inputs(record: Record, records: Mapping[str, Record | None]) -> list[str]:
    """The stages that something was made from, and that were run anew since."""
    found = {name: (records.get(name) or {}).get("finished_at") for name in record["made_from"]}
    return [name for name, finished_at in record["made_from"].items() if found[name] != finished_at]


def _check_record(stage: Stage, record: Record, records: Mapping[str, Record | None]) -> None:
    anew = f"delete {stage.folder} and the folders of the stages made from it to run it anew"
    before, now = _flat(record["config"]), _flat(_recorded(stage))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise UserError(
                f"stage {stage.name} is finished, with {key} {before.get(key, 'at its default')!r}, and the recipe has "
                f"{now.get(key, 'its default')!r} now; set it back, keep what is there by starting --from the next "
                f"stage, or {anew}"
            )
    for name in _gone_inputs(record, records):
        raise UserError(
            f"stage {stage.name} is finished, and was made from a run of {name} that is no longer there; {anew}"
        )


def _recorded(stage: Stage) -> dict[str, Any]:  # Any: JSON
    """The settings that are not at their defaults, so that a new setting makes no difference, and without the title."""
    return stage.config.model_dump(mode="json", exclude_defaults=True, exclude={"run": {"name"}})


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:  # Any: JSON
    """By dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _stand_in(reference: Reference, stages: Mapping[str, Stage], unknown: set[str]) -> str:
    name, output = reference
    stage = stages[name]
    path = str(stage.folder / output)
    if _read_record(stage.folder) is not None:
        return path
    if output == run_folder.EXPORT and stage.command.keeps_model:
        return stage.model_path(lambda inner: _stand_in(inner, stages, unknown))
    unknown.add(path)
    return path


def _write_record(stage: Stage, *, seconds: float) -> None:
    record: dict[str, Json] = {
        "finished_at": datetime.now(UTC).isoformat(),
        "seconds": round(seconds, 1),
        "made_from": _inputs_of(stage),
        "config": _recorded(stage),
    }
    run_folder.write_summary(stage.folder, record, name=RECORD_FILE)
    (stage.folder / BEGUN_FILE).unlink(missing_ok=True)


def _inputs_of(stage: Stage) -> dict[str, Json]:
    """When the stages that it reads from were finished."""
    inputs = {name: _read_record(stage.folder.parent / name) for name in stage.inputs}
    return {name: found["finished_at"] for name, found in inputs.items() if found}


def _read_record(folder: Path) -> Record | None:
    return _read_json(folder / RECORD_FILE)


def _read_json(path: Path) -> Record | None:
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete its folder to run the stage anew") from error
    assert isinstance(found, dict)
    return found
