"""The log is numbered without a gap, through resumes and torn lines."""

import json
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.errors import RunFolderError
from services.control.event_log import EVENTS_FILE, EventLog


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / EVENTS_FILE).read_bytes().splitlines()]


def test_an_event_is_in_the_file_as_soon_as_it_was_noted(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        log.note("admitted", prompt="0-1", position=0)
        (line,) = lines(tmp_path)
        assert (line["seq"], line["event"], line["prompt"], line["position"]) == (0, "admitted", "0-1", 0)
        assert log.num_events == 1


def test_a_resumed_log_goes_on_and_a_new_one_starts_anew(tmp_path: Path) -> None:
    for resume, expected in ((False, ["a"]), (True, ["a", "b"]), (False, ["c"])):
        with EventLog(tmp_path, resume=resume) as log:
            log.note(expected[-1])
        assert [line["event"] for line in lines(tmp_path)] == expected
        assert [line["seq"] for line in lines(tmp_path)] == list(range(len(expected)))


@given(st.integers(0, 200), st.text(max_size=5))
def test_whatever_a_crash_tore_off_only_the_last_line_is_lost(cut: int, text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        with EventLog(path) as log:
            for _ in range(3):
                log.note("said", text=text)
        content = (path / EVENTS_FILE).read_bytes()
        torn = content[: max(0, len(content) - cut)]
        (path / EVENTS_FILE).write_bytes(torn)
        with EventLog(path, resume=True) as log:
            assert log.num_events == torn.count(b"\n")
            log.note("went on")
        assert [line["seq"] for line in lines(path)] == list(range(torn.count(b"\n") + 1))
        assert lines(path)[-1]["event"] == "went on"


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """As on a disk that is full from there on."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_an_event_that_the_disk_refuses_is_a_typed_error_and_leaves_no_part_of_its_line(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        log.note("admitted", prompt="0-1")
        with (
            files_of_at_most(100),
            pytest.raises(RunFolderError, match=r"events\.jsonl cannot be written"),
        ):
            log.note("admitted", prompt="x" * 200)
        log.note("admitted", prompt="0-2")
    assert [(line["seq"], line["prompt"]) for line in lines(tmp_path)] == [(0, "0-1"), (1, "0-2")]
