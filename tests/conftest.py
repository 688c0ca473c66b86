"""Fixtures that several folders share."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.end_to_end.tiny_run import write_task

# How long an example takes says more of the machine than of the code.
settings.register_profile("trireme", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("trireme")


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, `rows.jsonl` and `digit_share.py`, made once."""
    return write_task(tmp_path_factory.mktemp("task"))
