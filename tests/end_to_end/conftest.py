"""The undisturbed run that disturbed runs are compared with."""

from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.command import trireme, write_config
from tests.end_to_end.tiny_run import long_run_sections


@pytest.fixture(scope="session")
def undisturbed_long(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synchronous run of one worker that is long enough to be disturbed; others must end in the same weights."""
    return undisturbed(task, tmp_path_factory.mktemp("undisturbed_long"))


def undisturbed(task: Path, folder: Path, **changes: dict[str, Any]) -> Path:
    """The folder of such a run."""
    finished = trireme("train", write_config(folder / "run.yaml", **long_run_sections(task, **changes)), cwd=folder)
    assert finished.code == 0, finished.output
    return folder / "run"
