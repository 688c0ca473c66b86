"""A small Ray of the tests' own. It must not join a cluster that happens to run on the machine."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray

from services.control.ray_start import init_here


@contextmanager
def local_ray(*, num_cpus: int) -> Iterator[None]:
    """Start it, and end it with everything that was started in it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_worker_niceness", "0")  # By default its processes yield to all others, and then crawl.
        init_here(num_cpus=num_cpus, object_store_memory=100 * 2**20, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
