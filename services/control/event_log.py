"""The append-only log of a run, `events.jsonl`: one JSON line an event, numbered without a gap.

It must not know what the events mean. Invariants: a line is on its way to the disk before `note` returns; numbers go on
where the file ends, also after a crash that tore the last line, which is cut off.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from services.contracts.records import Json
from services.control.line_file import LineFile

EVENTS_FILE = "events.jsonl"


class EventLog:
    """Appends events.

    Args:
        folder: the run's folder.
        resume: go on with the file that is there; else it starts anew.

    Attributes:
        num_events: events so far; the number of the next one.
    """

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / EVENTS_FILE
        whole = _whole_lines(path) if resume else []
        self._file = LineFile(path, keep_bytes=sum(map(len, whole)))
        self.num_events = len(whole)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def note(self, event: str, **fields: Json | Mapping[str, Json]) -> None:
        """Write one event. Raises `RunFolderError`."""
        line = {"seq": self.num_events, "time": round(time.time(), 3), "event": event, **fields}
        self._file.append(json.dumps(line).encode())
        self.num_events += 1


def read_events(folder: Path) -> list[dict[str, Any]]:  # Any: JSON
    """Every event in the folder's log."""
    return [json.loads(line) for line in (folder / EVENTS_FILE).read_bytes().splitlines()]


def _whole_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
