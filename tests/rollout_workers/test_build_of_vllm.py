"""A worker whose GPUs and whose build of vLLM do not fit each other."""

from typing import Any

import pytest
import ray

from services.contracts.errors import UserError
from services.contracts.settings import ModelConfig
from tests.rollout_workers.conftest import ROLLOUT


def test_a_worker_with_a_gpu_refuses_the_build_for_cpus(host: Any) -> None:
    rollout = ROLLOUT.model_copy(update={"gpus_per_worker": 1})

    with pytest.raises(UserError, match=r"gpus_per_worker is 1 and .* built for CPUs; set it to 0, .*\[gpu\]"):
        ray.get(host.start.remote("on a GPU", ModelConfig(path="anywhere", dtype="float32"), rollout), timeout=60)
