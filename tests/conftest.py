"""Fixtures that several folders share."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from tests.end_to_end.tiny_run import write_task

# How long an example takes says more of the machine than of the code.
settings.register_profile("trireme", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("trireme")

WHOLE_RUNS = "tests/end_to_end/"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs go first, because they take the longest."""
    items.sort(key=lambda item: not item.nodeid.startswith(WHOLE_RUNS))


class WholeRunsAndFiles(LoadScopeScheduling):
    """Gives one process all whole runs, which share the machine badly, and each other file to one process."""

    def _split_scope(self, nodeid: str) -> str:
        return WHOLE_RUNS if nodeid.startswith(WHOLE_RUNS) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> WholeRunsAndFiles:  # Any: pytest-xdist's producer
    """Who runs what where there are several processes."""
    return WholeRunsAndFiles(config, log)


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, `rows.jsonl` and `digit_share.py`, made once."""
    return write_task(tmp_path_factory.mktemp("task"))
