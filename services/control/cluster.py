"""Ray: where there is room for the processes of a run, and how they get into it.

It must not know what the processes do. Invariants: a process lives in a room that was reserved for it, and keeps
nothing of it when the room is released; every wait has a deadline, and none blocks the event loop; `close` leaves no
process behind.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from services.contracts.errors import DeadlineExceeded, UserError, WorkerLost
from services.control.actor import PULSE, Actor, original
from services.control.config import ClusterConfig
from services.control.host import Named, host_of
from services.control.placement import Demand, Resources, in_words, shortage, total, unplaced, who_needs_what
from services.control.ray_start import start_ray
from services.transport.ports import free_port

_SETTLE_S = 3.0
"""Time for what was just released to be free again in the eyes of the whole cluster."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """A reserved place for one process; one after the other may live in it."""

    demand: Demand
    group: PlacementGroup
    bundle: int

    def strategy(self) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=self.bundle)


class Cluster:
    """A running Ray cluster that has, in all, what the run demands.

    Args:
        demands: every process that the run starts with.
        spare: what may be asked for later. A Ray that is started here gets cores for it, shared with the others.

    Raises:
        UserError: when the cluster cannot be reached, or is too small for `demands`.
    """

    def __init__(self, config: ClusterConfig, demands: Sequence[Demand], *, spare: Sequence[Demand] = ()) -> None:
        self._groups: set[PlacementGroup] = set()
        self._leave = start_ray(config, num_cpus=max(1, math.ceil(sum(demand.cpus for demand in [*demands, *spare]))))
        missing = shortage(demands, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        if missing:
            self._leave()
            raise UserError(missing)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def reserve(self, demand: Demand, *, timeout_s: float) -> Room:
        """A room of its own for one process, on whichever machine has one. Raises as `reserve_together` does."""
        [room] = await self.reserve_together([demand], timeout_s=timeout_s)
        return room

    async def reserve_together(
        self, demands: Sequence[Demand], *, timeout_s: float, strategy: str = "PACK"
    ) -> Sequence[Room]:
        """Rooms that are granted and released together.

        Args:
            strategy: Ray's placement strategy; by default as few machines as possible.

        Raises:
            UserError: no machine has so much free now.
            DeadlineExceeded: the room is free and was not granted within `timeout_s`.
        """
        group = placement_group([demand.bundle() for demand in demands], strategy=strategy)
        self._groups.add(group)
        rooms = [Room(demand=demand, group=group, bundle=index) for index, demand in enumerate(demands)]
        try:
            await _granted(group, demands, timeout_s)
        except BaseException:
            self.release(rooms[0])
            raise
        return rooms

    def release(self, room: Room) -> None:
        """Give the room up, with those that were reserved together with it; ends whoever still lives there."""
        if room.group in self._groups:
            self._groups.remove(room.group)
            ray.util.remove_placement_group(room.group)

    def spawn(
        self,
        made_of: type | Named,
        room: Room,
        arguments: Mapping[str, object],
        *,
        environment: Mapping[str, str],
        concurrency: int = 1,
        pulse: bool = False,
    ) -> Actor:
        """Start a process in `room` that hosts `made_of(**arguments)`; does not wait for it.

        Args:
            environment: variables set before the process imports anything.
            concurrency: calls it may work on at a time (asynchronous methods).
            pulse: it answers `Actor.pulse` while it works, and so does its work in a thread that is not the main one.
        """
        demand = room.demand
        remote = ray.remote(concurrency_groups={PULSE: 1}) if pulse else ray.remote
        handle = (
            remote(host_of(made_of, concurrency=concurrency))
            .options(
                name=None,
                num_cpus=demand.cpus,
                num_gpus=demand.gpus,
                max_concurrency=concurrency,
                max_restarts=0,
                # Ray leaves every GPU in sight of a process that asked for none.
                runtime_env={"env_vars": ({} if demand.gpus else {"CUDA_VISIBLE_DEVICES": ""}) | dict(environment)},
                scheduling_strategy=room.strategy(),
            )
            .remote(made_of, arguments)
        )
        return Actor(handle, name=demand.name)

    async def address_for(self, room: Room, *, timeout_s: float) -> tuple[str, int]:
        """Address and a free port on the machine of `room`. Raises `UserError`, `DeadlineExceeded`, `WorkerLost`."""
        task = ray.remote(_free_address).options(num_cpus=0, scheduling_strategy=room.strategy()).remote()
        name = f"a free port beside {room.demand.name}"
        try:
            async with asyncio.timeout(timeout_s):
                host, port = await asyncio.wrap_future(task.future())
        except RayTaskError as error:
            raise original(error, name, "search") from error
        except RayError as error:
            raise WorkerLost(f"the machine that was asked for {name} was lost: {error}") from error
        except TimeoutError as error:
            raise DeadlineExceeded(waited_for=name, waited_s=timeout_s, advice="look at `ray status`") from error
        return str(host), int(port)

    def close(self) -> None:
        """End every process of the run; a cluster that was running before goes on."""
        for group in self._groups:
            ray.util.remove_placement_group(group)
        self._groups.clear()
        self._leave()


def put(value: object) -> object:
    """Store a value once for many processes; passed as an argument it arrives as the value itself."""
    return ray.put(value)


async def _granted(group: PlacementGroup, demands: Sequence[Demand], timeout_s: float) -> None:
    settle_s = min(timeout_s, _SETTLE_S)
    for wait_s in (settle_s, timeout_s - settle_s):
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await asyncio.wrap_future(group.ready().future())
                return
        free = await asyncio.to_thread(_free_resources)
        if unplaced(demands, free):
            has = total(node["Resources"] for node in ray.nodes() if node["Alive"])
            raise UserError(
                f"no machine has room for {who_needs_what(demands)}; free: {in_words(total(free))} of {in_words(has)}; "
                "end other work on the cluster, ask for fewer workers, or add machines"
            )
    raise DeadlineExceeded(
        waited_for=f"room for {who_needs_what(demands)}", waited_s=timeout_s, advice="look at `ray status`"
    )


def _free_resources() -> Sequence[Resources]:
    free: Mapping[str, Resources] = ray._private.state.available_resources_per_node()  # the public call adds them up
    return list(free.values())


def _free_address() -> tuple[str, int]:
    host = ray.util.get_node_ip_address()
    return host, free_port(host)
