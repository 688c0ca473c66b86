"""Starts Ray for this run, or joins a Ray cluster that runs already.

It must not know what is to run there. Invariants: a local Ray answers only those who have this run's token;
an existing one is joined only after it was asked in seconds whether it lets this process in.
"""

import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private.services import get_ray_address_from_environment

from services.contracts.errors import DeadlineExceeded, UserError
from services.control.config import ClusterConfig
from services.control.process_tree import end_process_tree, start_ticks
from services.control.ray_access import check_access
from services.control.ray_watchdog import watch

_QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}  # Any: Ray's options
_LATE = ("timed out during startup", "Timed out waiting for file")  # Ray says so of its node, and of its server.


def start_ray(config: ClusterConfig, *, num_cpus: int) -> Callable[[], None]:
    """Join the cluster at `config.address`; without one start Ray here, with `num_cpus` logical cores.

    Returns:
        What leaves the cluster, or ends the Ray that was started here.

    Raises:
        UserError: nothing answers at the address, or it may not be joined.
        DeadlineExceeded: the Ray that was started here did not come up.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    with ExitStack() as stack:
        if config.address is not None:
            _join(config, config.address)
        else:
            stack.enter_context(watch(_start(config, num_cpus=num_cpus)))
        stack.callback(ray.shutdown)
        return stack.pop_all().close


def _start(config: ClusterConfig, *, num_cpus: int) -> Path:
    """Start Ray on this machine; returns the folder of its session."""
    # By default Ray's workers yield to every other process, and a learner that shares its cores crawls.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # Ray spells it so
    # By default it also starts an idle process for each core, before anyone asked for one.
    os.environ["RAY_prestart_worker_first_driver"] = "0"  # noqa: SIM112
    # Ray listens on every interface; a token of this run's own keeps others out.
    os.environ["RAY_AUTH_TOKEN"] = _token()
    with _own_handlers():
        context = init_here(num_cpus=num_cpus, object_store_memory=int(config.object_store_gib * 2**30), **_QUIET)
    return Path(context.address_info["session_dir"])


def init_here(**options: Any) -> Any:  # Any: Ray's options, and its context
    """`ray.init` on this machine alone, a second time where its processes are not there within Ray's 30 s.

    On a busy machine one of them has been seen to do nothing, not even to begin its log, and the next one to be well.

    Raises:
        DeadlineExceeded: they were late both times.
    """
    started = time.monotonic()
    with suppress(_Late):
        return _init(options)
    try:
        return _init(options)
    except _Late as error:
        raise DeadlineExceeded(
            waited_for="Ray to start on this machine",
            waited_s=time.monotonic() - started,
            advice=f"the machine may be overloaded or out of memory; try again when it is not ({error})",
        ) from error


class _Late(Exception):
    """Ray gave up on its own processes, all of which are ended."""


def _init(options: dict[str, Any]) -> Any:  # Any: Ray's options, and its context
    ours = psutil.Process().children()
    try:
        return ray.init(address="local", include_dashboard=False, **options)
    except Exception as error:  # Ray raises nothing narrower where its node is late.
        if not any(words in str(error) for words in _LATE):
            raise
        for child in psutil.Process().children():
            if child not in ours and (started := start_ticks(child.pid)) is not None:
                end_process_tree(child.pid, started)
        raise _Late(error) from error


@cache
def _token() -> str:
    """One for the life of the process: Ray reads it once, and would come to a second Ray with the first one's."""
    return secrets.token_hex(32)


def _join(config: ClusterConfig, address: str) -> None:
    try:
        head = get_ray_address_from_environment("auto", None) if address == "auto" else address
        if "://" in head:
            raise UserError(
                f"cluster.address is {head!r}, and a run does not go through a Ray client; give the head's HOST:PORT, "
                "or have the cluster run the command: `ray job submit -- trireme train run.yaml --cluster.address auto`"
            )
        check_access(head, allow_unauthenticated=config.allow_unauthenticated)
        with _own_handlers():
            ray.init(address=head, **_QUIET)
    except UserError:
        raise
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
