"""A small Ray of the tests' own. It must not join a cluster that happens to run on the machine."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray


@contextmanager
def local_ray(*, num_cpus: int) -> Iterator[None]:
    """Start it, and end it with everything that was started in it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_worker_niceness", "0")  # By default its processes yield to all others, and then crawl.
        try:
            _start(num_cpus)
        except Exception as error:
            if type(error) is not Exception:  # Ray raises just that where its own processes take more than 30 s.
                raise
            ray.shutdown()
            _start(num_cpus)
    try:
        yield
    finally:
        ray.shutdown()


def _start(num_cpus: int) -> None:
    ray.init(
        address="local",
        num_cpus=num_cpus,
        object_store_memory=100 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
