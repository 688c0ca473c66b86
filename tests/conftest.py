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
FAULTS = "tests/end_to_end/test_faults"
WHOLE_RUN_TIMEOUT_S = 600
"""Some are six commands, one after the other, and a machine with other work has taken 300 s for those."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs that are disturbed go first, because they take the longest; other whole runs go last, two at a time."""
    for item in items:
        if item.nodeid.startswith(WHOLE_RUNS):
            item.add_marker(pytest.mark.timeout(WHOLE_RUN_TIMEOUT_S))
    items.sort(key=lambda item: (not item.nodeid.startswith(FAULTS), item.nodeid.startswith(WHOLE_RUNS)))


class FaultsAndFiles(LoadScopeScheduling):
    """Gives one process all runs that are disturbed, of which each is timed, and each other file to one process."""

    def _split_scope(self, nodeid: str) -> str:
        return FAULTS if nodeid.startswith(FAULTS) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FaultsAndFiles:  # Any: pytest-xdist's producer
    """Who runs what where there are several processes."""
    return FaultsAndFiles(config, log)


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, `rows.jsonl` and `digit_share.py`, made once."""
    return write_task(tmp_path_factory.mktemp("task"))
