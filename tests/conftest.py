"""Fixtures that several folders share."""

from pathlib import Path

import pytest

from tests.end_to_end.tiny_run import write_task


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, `rows.jsonl` and `digit_share.py`, made once."""
    return write_task(tmp_path_factory.mktemp("task"))
