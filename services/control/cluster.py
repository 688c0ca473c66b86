"""Ray: where the processes of a run live. The only file of this package that imports it.

It must not know what the processes do. Invariants: every wait has a deadline and its error says what was waited for; a
failure inside an actor arrives as the typed error that was raised there; `close` leaves no process behind.
"""

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from services.contracts.errors import DeadlineExceeded, TriremeError, UserError, WorkerLost
from services.control.config import ClusterConfig

_CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What one process needs of its machine."""

    name: str
    cpus: float
    gpus: float = 0.0

    def bundle(self) -> dict[str, float]:
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


class Actor:
    """One process of the run, called by method name; safe to call many times at once.

    Args:
        name: what errors call it.
    """

    def __init__(self, handle: Any, *, name: str) -> None:  # Any: Ray's handles are untyped
        self._handle = handle
        self.name = name

    async def call(self, method: str, *args: object, timeout_s: float) -> Any:  # Any: what the method returns
        """Call `method` in the actor's process.

        Raises:
            DeadlineExceeded: no answer within `timeout_s`.
            WorkerLost: the process died.
            TriremeError: whatever typed error the method raised.
        """
        future = asyncio.wrap_future(getattr(self._handle, method).remote(*args).future())
        try:
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError as error:
            raise DeadlineExceeded(
                waited_for=f"{method} of {self.name}", waited_s=timeout_s, advice="see its log in Ray's session folder"
            ) from error
        except RayTaskError as error:
            raise _original(error, self.name, method) from error
        except RayActorError as error:
            raise WorkerLost(f"the process of {self.name} died during {method}: {error}") from error

    def kill(self) -> None:
        ray.kill(self._handle)


class Cluster:
    """A running Ray cluster with room reserved for every demanded process.

    Raises:
        UserError: when the cluster cannot be reached, or is too small for the demands.
        DeadlineExceeded: when the room is not granted in time.
    """

    def __init__(self, config: ClusterConfig, demands: Sequence[Demand]) -> None:
        self._demands = list(demands)
        self._start(config)
        try:
            self._group = self._reserve(config.start_timeout_s)
        except BaseException:
            ray.shutdown()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def spawn(
        self,
        process: type,
        demand: Demand,
        arguments: Mapping[str, object],
        *,
        environment: Mapping[str, str],
        concurrency: int = 1,
    ) -> Actor:
        """Start `process(**arguments)` in a process of its own, in the room of `demand`; does not wait for it.

        Args:
            environment: variables set before the process imports anything.
            concurrency: calls it may work on at a time (asynchronous methods).
        """
        handle = (
            ray.remote(process)
            .options(
                name=None,
                num_cpus=demand.cpus,
                num_gpus=demand.gpus,
                max_concurrency=concurrency,
                max_restarts=0,
                # Ray leaves every GPU in sight of a process that asked for none.
                runtime_env={"env_vars": ({} if demand.gpus else {"CUDA_VISIBLE_DEVICES": ""}) | dict(environment)},
                scheduling_strategy=self._place(demand),
            )
            .remote(**arguments)
        )
        return Actor(handle, name=demand.name)

    def address_for(self, demand: Demand, *, timeout_s: float) -> tuple[str, int]:
        """Address and a free port on the machine where `demand` has its room."""
        task = ray.remote(_free_address).options(num_cpus=0, scheduling_strategy=self._place(demand)).remote()
        try:
            host, port = ray.get(task, timeout=timeout_s)
        except GetTimeoutError as error:
            raise DeadlineExceeded(
                waited_for=f"a free port beside {demand.name}", waited_s=timeout_s, advice="look at `ray status`"
            ) from error
        return str(host), int(port)

    def close(self) -> None:
        """End every process of the run; a cluster that was running before goes on."""
        ray.util.remove_placement_group(self._group)
        ray.shutdown()

    def _start(self, config: ClusterConfig) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}  # Any: Ray's options
        if config.address is not None:
            try:
                _refuse_silence(config.address)
                ray.init(address=config.address, **quiet)
            except (OSError, ValueError, RuntimeError) as error:
                raise UserError(f"no Ray cluster answers at cluster.address={config.address!r}: {error}") from error
            return
        # By default Ray's workers yield to every other process, and a learner that shares its cores crawls.
        os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # Ray spells it so
        # Ray listens on every interface; a token of this run's own keeps others out.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        ray.init(
            address="local",
            num_cpus=max(1, round(sum(demand.cpus for demand in self._demands))),
            include_dashboard=False,
            object_store_memory=int(config.object_store_gib * 2**30),
            **quiet,
        )

    def _reserve(self, timeout_s: float) -> PlacementGroup:
        has = ray.cluster_resources()
        for resource in ("CPU", "GPU"):
            needs = sum(demand.bundle().get(resource, 0.0) for demand in self._demands)
            if needs > has.get(resource, 0.0):
                raise UserError(
                    f"the run needs {needs:g} {resource}, and the cluster has {has.get(resource, 0.0):g}; lower "
                    "rollout.num_workers or learner.num_ranks, or add machines"
                )
        group = placement_group([demand.bundle() for demand in self._demands], strategy="PACK")
        if not group.wait(timeout_s):
            wanted = ", ".join(f"{demand.name}: {demand.bundle()}" for demand in self._demands)
            raise DeadlineExceeded(
                waited_for=f"room for {wanted}",
                waited_s=timeout_s,
                advice=f"free now: {ray.available_resources()}; look at `ray status`",
            )
        return group

    def _place(self, demand: Demand) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=self._demands.index(demand))


def constructed_by_start(process: type) -> type:
    """`process` with a method `start` that does what its constructor does.

    An error in an actor's constructor reaches the caller as text only; one in a method arrives as it was raised.
    """

    class Deferred(process):  # type: ignore[misc]  # a base that is known only at run time
        def __init__(self, **arguments: object) -> None:
            self._arguments = arguments

        def start(self) -> None:
            super().__init__(**self._arguments)

    return Deferred


def put(value: object) -> object:
    """Store a value once for many processes; passed as an argument it arrives as the value itself."""
    return ray.put(value)


def _refuse_silence(address: str) -> None:
    """Raise `OSError` when nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()


def _original(error: RayTaskError, name: str, method: str) -> TriremeError:
    if isinstance(error.cause, TriremeError):
        return error.cause
    return TriremeError(f"{method} of {name} failed: {error}")


def _free_address() -> tuple[str, int]:
    host = ray.util.get_node_ip_address()
    with socket.socket() as listener:
        listener.bind((host, 0))
        return host, listener.getsockname()[1]
