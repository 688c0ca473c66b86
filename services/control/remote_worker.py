"""Rollout workers in processes of their own: how they are started, called and ended on the cluster.

It must not know the pool. Invariants: every call has a deadline a little longer than the worker's own; a worker that
did not become ready, or is stopped, has its process ended and its room given back.
"""

import logging

from rollout_workers.config import RolloutConfig, engine_environment
from services.contracts.errors import TriremeError
from services.contracts.records import Publication, RolloutGroup, SampleRequest, SyncReceipt
from services.control.actor import Actor
from services.control.cluster import Cluster, Room
from services.control.config import RunConfig
from services.control.host import Named
from services.control.placement import Demand

_MARGIN_S = 15.0
"""How much longer the caller waits than the worker itself does, so that the worker's own error arrives."""

_PROBE_MARGIN_S = 0.5
_STOP_TIMEOUT_S = 20.0
_CALLS_AT_ONCE = 4096
"""Calls a rollout worker may hold; the pool bounds how many there are, so this only has to be large."""

_log = logging.getLogger(__name__)


class RemoteWorker:
    """A rollout worker as the pool and the fleet see it."""

    def __init__(self, actor: Actor, room: Room, cluster: Cluster, rollout: RolloutConfig) -> None:
        self._actor = actor
        self._room = room
        self._cluster = cluster
        self._rollout = rollout
        self.node = ""
        self.pid = 0

    async def ready(self) -> None:
        """Wait until the model is loaded. Raises `UserError`, `DeadlineExceeded`, `WorkerLost`."""
        timeout_s = self._rollout.start_timeout_s + _MARGIN_S
        location = await self._actor.locate(timeout_s=timeout_s)
        self.node, self.pid = location.node, location.pid
        await self._actor.call("start", timeout_s=timeout_s)

    async def sample(self, request: SampleRequest) -> RolloutGroup:
        group: RolloutGroup = await self._actor.call(
            "sample", request, timeout_s=self._rollout.sample_timeout_s + _MARGIN_S, cancels=True
        )
        return group

    async def load_weights(self, publication: Publication) -> SyncReceipt:
        receipt: SyncReceipt = await self._actor.call(
            "load_weights", publication, timeout_s=self._rollout.sync_timeout_s + _MARGIN_S
        )
        return receipt

    async def health(self) -> int:
        version: int = await self._actor.call("health", timeout_s=self._rollout.health_timeout_s + _PROBE_MARGIN_S)
        return version

    async def sleep(self) -> None:
        await self._actor.call("sleep", timeout_s=self._rollout.sync_timeout_s + _MARGIN_S)

    async def stop(self) -> None:
        try:
            await self._actor.kill(timeout_s=_STOP_TIMEOUT_S)
        except TriremeError as error:
            _log.warning("%s may have left a process on its machine: %s", self._actor.name, error)
        finally:
            self._cluster.release(self._room)


class RayLauncher:
    """Implements `Launcher`.

    Args:
        transport: how weights come; None serves those of the model's folder.
    """

    def __init__(self, cluster: Cluster, config: RunConfig, *, transport: str | None) -> None:
        self._cluster = cluster
        self._config = config
        self._transport = transport

    async def launch(self, number: int) -> RemoteWorker:
        rollout = self._config.rollout
        demand = worker_demand(rollout, number)
        room = await self._cluster.reserve(demand, timeout_s=self._config.cluster.start_timeout_s)
        actor = self._cluster.spawn(
            Named(path="rollout_workers.worker:RolloutWorker"),  # Not imported here: it needs torch.
            room,
            {"worker": number, "rollout": rollout, "model": self._config.model, "transport": self._transport},
            environment=engine_environment(rollout, cuda=bool(demand.gpus)),
            concurrency=_CALLS_AT_ONCE,
        )
        worker = RemoteWorker(actor, room, self._cluster, rollout)
        try:
            await worker.ready()
            if rollout.colocate and self._transport is not None:
                await worker.sleep()  # Its first weights wake it; until then the GPU is the learner's.
        except BaseException:
            await worker.stop()
            raise
        return worker


def worker_demand(rollout: RolloutConfig, number: int) -> Demand:
    """What rollout worker `number` needs."""
    gpus = rollout.gpus_per_worker * gpu_share(rollout)
    return Demand(name=f"rollout worker {number}", cpus=rollout.cpus_per_worker, gpus=gpus)


def gpu_share(rollout: RolloutConfig) -> float:
    """How much of its GPU a process has to itself."""
    return 0.5 if rollout.colocate else 1.0
