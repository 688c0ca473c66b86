"""A Ray that does not come up is started once more, and told as a failure with a name after that."""

import subprocess
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import ray

from services.contracts.errors import DeadlineExceeded
from services.control.ray_start import init_here

LATE = [
    Exception("The current node timed out during startup. This could happen because ..."),
    RuntimeError("Timed out waiting for file /tmp/ray/session/gcs_server_port"),
]


def late(error: Exception, *, times: int) -> Callable[..., str]:
    """In the place of `ray.init`: leaves a process behind at each failure, as Ray does."""
    failures = iter([error] * times)

    def init(**_: Any) -> str:
        for failure in failures:
            subprocess.Popen(["sleep", "60"])
            raise failure
        return "context"

    return init


@pytest.mark.parametrize("error", LATE)
def test_a_ray_that_is_late_once_is_started_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", late(error, times=1))
    before = psutil.Process().children()

    assert init_here() == "context"

    left = [child for child in psutil.Process().children() if child not in before]
    assert left == []


@pytest.mark.parametrize("error", LATE)
def test_a_ray_that_is_late_twice_is_told_with_what_to_do(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", late(error, times=2))
    with pytest.raises(DeadlineExceeded, match=r"Ray to start on this machine; .*overloaded.*[Tt]imed out"):
        init_here()


def test_another_failure_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", late(RuntimeError("no room"), times=1))
    with pytest.raises(RuntimeError, match="no room"):
        init_here()
