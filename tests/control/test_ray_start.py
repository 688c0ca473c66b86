"""A Ray that does not come up on a busy machine is a failure with a name."""

import pytest
import ray
from ray._private.authentication_test_utils import authentication_env_guard

from services.contracts.errors import DeadlineExceeded
from services.control.config import ClusterConfig
from services.control.ray_start import start_ray


def test_a_ray_that_is_late_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(**_: object) -> None:
        raise Exception("The current node timed out during startup.")  # Ray raises no other kind.

    monkeypatch.setattr(ray, "init", late)
    with (
        authentication_env_guard(),
        pytest.raises(DeadlineExceeded, match=r"Ray to start on this machine; .*overloaded.*timed out during startup"),
    ):
        start_ray(ClusterConfig(), num_cpus=1)
