"""The log of a job that goes on where it stopped, in the folder that the job holds.

It must not know what the job does. Invariant: one folder has the events of one kind of job; neither another kind nor a
run adds to them or writes them over.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services.contracts.errors import UserError
from services.contracts.records import Json
from services.control import run_folder
from services.control.event_log import EVENTS_FILE, EventLog, read_events

Event = Mapping[str, Any]  # Any: JSON
_BEGAN = "began"


@contextmanager
def open_job_log(folder: Path, key: str, value: Json) -> Iterator[tuple[EventLog, Sequence[Event]]]:
    """Hold the folder, and give its log with the events that are in it; a job that is new notes that it began.

    Args:
        key: what the beginning tells of this kind of job, and of no other.
        value: what it tells of this job.

    Raises:
        UserError: another process holds the folder, or something else than such a job is in it.
    """
    with run_folder.hold(folder, resume=False), EventLog(folder, resume=True) as log:
        if not log.num_events:
            log.note(_BEGAN, **{key: value})
        events = read_events(folder)
        if events[0]["event"] != _BEGAN or key not in events[0]:
            raise UserError(f"{folder} holds what a run or another command began; set run.dir to a new folder")
        yield log, events


def refuse_job(folder: Path) -> None:
    """Raise `UserError` where a job keeps its log, which a run that begins anew would write over."""
    path = folder / EVENTS_FILE
    if not path.exists():
        return
    with path.open("rb") as file:
        first = file.readline()  # Of a run that was killed the last line may be torn.
    if f'"event": "{_BEGAN}"'.encode() in first:
        raise UserError(f"{folder} holds the work of a job that labels or revises; set run.dir to a new folder")
