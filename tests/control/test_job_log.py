"""A folder has the work of one kind of job, and neither another kind nor a run writes into it."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from services.contracts.errors import UserError
from services.control.event_log import EVENTS_FILE, EventLog, read_events
from services.control.job_log import open_job_log, refuse_job
from services.control.judging import JobConfig, open_job
from services.control.step_label_job import open_step_label_job
from tests.control.test_step_labels import run_config


def judging(folder: Path) -> AbstractContextManager[object]:
    return open_job(JobConfig(dir=folder), work="verdicts")


def labelling(folder: Path) -> AbstractContextManager[object]:
    return open_step_label_job(run_config(folder))


def a_run(folder: Path) -> AbstractContextManager[object]:
    """As it is when it was killed before its first step."""
    log = EventLog(folder)
    log.note("run_started", pid=1)
    return log


@pytest.mark.parametrize(
    ("first", "second"), [(judging, labelling), (labelling, judging), (a_run, judging), (a_run, labelling)]
)
def test_a_job_adds_nothing_to_what_something_else_began(
    first: Callable[[Path], AbstractContextManager[object]],
    second: Callable[[Path], AbstractContextManager[object]],
    tmp_path: Path,
) -> None:
    with first(tmp_path):
        pass
    before = read_events(tmp_path)
    with pytest.raises(UserError, match=r"holds what a run or another command began; set run\.dir") as raised:
        second(tmp_path).__enter__()
    assert str(tmp_path) in str(raised.value)
    assert read_events(tmp_path) == before


def test_a_job_goes_on_with_what_its_own_kind_began(tmp_path: Path) -> None:
    with open_job_log(tmp_path, "work", "verdicts") as (log, _):
        log.note("judged", item="a")
    with open_job_log(tmp_path, "work", "other verdicts") as (_, events):
        assert [event["event"] for event in events] == ["began", "judged"]
        assert events[0]["work"] == "verdicts"


def test_a_run_that_was_killed_early_may_begin_anew_and_a_job_is_not_written_over(tmp_path: Path) -> None:
    refuse_job(tmp_path)
    with a_run(tmp_path):
        pass
    with (tmp_path / EVENTS_FILE).open("a") as file:
        file.write('{"torn')
    refuse_job(tmp_path)
    (tmp_path / EVENTS_FILE).write_text(json.dumps({"seq": 0, "event": "began", "work": "verdicts"}) + "\n")
    with pytest.raises(UserError, match="holds the work of a job"):
        refuse_job(tmp_path)
