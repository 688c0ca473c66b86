"""Starts Ray for this run, or joins a Ray cluster that runs already.

It must not know what is to run there. Invariant: a local Ray answers only those who have this run's token.
"""

import logging
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from services.contracts.errors import UserError
from services.control.config import ClusterConfig

_CONNECT_TIMEOUT_S = 5.0
_QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}  # Any: Ray's options


def start_ray(config: ClusterConfig, *, num_cpus: int) -> None:
    """Join the cluster at `config.address`; without one start Ray here, with `num_cpus` logical cores.

    Raises:
        UserError: nothing answers at the address.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    if config.address is not None:
        _join(config.address)
        return
    # By default Ray's workers yield to every other process, and a learner that shares its cores crawls.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # Ray spells it so
    # By default it also starts an idle process for each core, before anyone asked for one.
    os.environ["RAY_prestart_worker_first_driver"] = "0"  # noqa: SIM112
    # Ray listens on every interface; a token of this run's own keeps others out.
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    with _own_handlers():
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=int(config.object_store_gib * 2**30),
            **_QUIET,
        )


def _join(address: str) -> None:
    try:
        _refuse_silence(address)
        with _own_handlers():
            ray.init(address=address, **_QUIET)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"no Ray cluster answers at cluster.address={address!r}: {error}") from error


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Ray puts a handler of its own over SIGTERM, which would end a run without its checkpoint."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _refuse_silence(address: str) -> None:
    """Raise `OSError` when nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
