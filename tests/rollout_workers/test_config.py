"""Rollout settings that contradict each other, and the environment that an engine gets."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from rollout_workers.config import RolloutConfig, engine_environment


def test_identical_samples_are_refused() -> None:
    with pytest.raises(ValidationError, match="8 times the same completion"):
        RolloutConfig(temperature=0.0, samples_per_prompt=8)
    RolloutConfig(temperature=0.0, samples_per_prompt=1)


def test_every_slice_of_a_model_needs_a_gpu() -> None:
    with pytest.raises(ValidationError, match="tensor_parallel_size is 4 and gpus_per_worker 2"):
        RolloutConfig(tensor_parallel_size=4, gpus_per_worker=2)


def test_a_request_carries_the_sampling_settings() -> None:
    rollout = RolloutConfig(samples_per_prompt=3, temperature=0.7, top_p=0.9, top_k=5, stop=("\n",))

    sampling = rollout.to_sampling(seed=11)

    assert (sampling.num_samples, sampling.temperature, sampling.top_p) == (3, 0.7, 0.9)
    assert (sampling.top_k, sampling.stop, sampling.seed) == (5, ("\n",), 11)


def test_an_engine_on_the_cpu_has_as_many_threads_as_the_worker_has_cores_and_binds_none() -> None:
    environment = engine_environment(RolloutConfig(cpus_per_worker=3), cuda=False)

    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_an_engine_on_a_gpu_may_compile() -> None:
    assert "TORCHDYNAMO_DISABLE" not in engine_environment(RolloutConfig(gpus_per_worker=1), cuda=True)


def test_describing_a_worker_imports_no_engine() -> None:
    program = (
        "import sys, rollout_workers.worker, rollout_workers.pool, rollout_workers.config;"
        "print({'vllm', 'ray'} & set(sys.modules))"
    )

    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert finished.stdout.strip() == "set()"
