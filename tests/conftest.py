"""Fixtures that several folders share."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.end_to_end.tiny_run import write_task

# How long an example takes says more of the machine than of the code.
settings.register_profile("trireme", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("trireme")

WHOLE_RUNS = Path(__file__).parent / "end_to_end"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs go first, one after the other; beside them the other files, each in one process with its fixtures."""
    for item in items:
        is_run = item.path.is_relative_to(WHOLE_RUNS)
        item.add_marker(pytest.mark.xdist_group("whole runs" if is_run else str(item.path)))
    items.sort(key=lambda item: not item.path.is_relative_to(WHOLE_RUNS))


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, `rows.jsonl` and `digit_share.py`, made once."""
    return write_task(tmp_path_factory.mktemp("task"))
