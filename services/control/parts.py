"""Starts the real parts of a run (reward service, Ray, learner ranks, rollout workers) and ends them again.

It must not know the loop. Invariants: every part is ready when `start_parts` yields; whatever was started is ended on
the way out, in whichever way that is; the parts start side by side, because each takes seconds.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from ppo_learner.config import OptimizerConfig
from ppo_learner.learner import LearnerRank
from ppo_learner.supervised import SupervisedRank
from rollout_workers.config import RolloutConfig, engine_environment
from rollout_workers.pool import RolloutPool
from rollout_workers.worker import RolloutWorker
from services.contracts.records import Publication, RolloutGroup, SampleRequest, SyncReceipt
from services.control.actor import Actor, constructed_by_start
from services.control.cluster import Cluster, Room
from services.control.config import ClusterConfig, RunConfig, SupervisedRunConfig
from services.control.learner_group import LearnerGroup
from services.control.placement import Demand
from services.control.reward_service import open_reward_service
from services.transport.reward_client import RewardClient

_MARGIN_S = 15.0
"""How much longer the caller waits than the worker itself does, so that the worker's own error arrives."""

_CALLS_AT_ONCE = 4096
"""Calls a rollout worker may hold; admission bounds how many there are, so this only has to be large."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """The running parts of an RL run; an evaluation has no learner."""

    learner: LearnerGroup | None
    rollouts: RolloutPool
    rewards: RewardClient


class RemoteWorker:
    """A rollout worker in a process of its own, as the pool sees it."""

    def __init__(self, actor: Actor, rollout: RolloutConfig) -> None:
        self._actor = actor
        self._rollout = rollout

    async def ready(self) -> None:
        await self._actor.call("start", timeout_s=self._rollout.start_timeout_s + _MARGIN_S)

    async def sample(self, request: SampleRequest) -> RolloutGroup:
        group: RolloutGroup = await self._actor.call(
            "sample", request, timeout_s=self._rollout.sample_timeout_s + _MARGIN_S
        )
        return group

    async def load_weights(self, publication: Publication) -> SyncReceipt:
        receipt: SyncReceipt = await self._actor.call(
            "load_weights", publication, timeout_s=self._rollout.sync_timeout_s + _MARGIN_S
        )
        return receipt


@asynccontextmanager
async def start_parts(config: RunConfig, *, with_learner: bool = True) -> AsyncIterator[Parts]:
    """Start everything an RL run or an evaluation needs.

    Raises:
        UserError: a reward service that does not answer as it should, or a cluster that is too small.
        DeadlineExceeded: a part that is not ready in time.
    """
    async with AsyncExitStack() as stack:
        rewards = await stack.enter_async_context(open_reward_service(config.reward, log_folder=config.run.dir))
        ranks = rank_demands(config.learner, config.cluster, gpu_share(config.rollout)) if with_learner else []
        workers = [worker_demand(config.rollout, worker) for worker in range(config.rollout.num_workers)]
        cluster = stack.enter_context(Cluster(config.cluster, [*ranks, *workers]))
        transport = config.weights.transport if with_learner else None
        learner_rooms = await cluster.reserve_together(ranks, timeout_s=config.cluster.start_timeout_s) if ranks else ()
        worker_rooms = [await cluster.reserve(demand, timeout_s=config.cluster.start_timeout_s) for demand in workers]
        remote_workers = [
            RemoteWorker(spawn_worker(cluster, room, config, index, transport), config.rollout)
            for index, room in enumerate(worker_rooms)
        ]
        learner = await spawn_learner(cluster, learner_rooms, config) if learner_rooms else None
        await asyncio.gather(*(worker.ready() for worker in remote_workers), *([learner.ready()] if learner else []))
        yield Parts(learner=learner, rollouts=RolloutPool(remote_workers), rewards=rewards)


@asynccontextmanager
async def start_supervised_learner(config: SupervisedRunConfig) -> AsyncIterator[LearnerGroup]:
    """Start the ranks of a supervised run."""
    ranks = rank_demands(config.learner, config.cluster)
    with Cluster(config.cluster, ranks) as cluster:
        rooms = await cluster.reserve_together(ranks, timeout_s=config.cluster.start_timeout_s)
        group = await _spawn_ranks(cluster, rooms, SupervisedRank, config, learner=config.learner)
        await group.ready()
        yield group


def run_demands(config: RunConfig) -> list[Demand]:
    """The processes of an RL run that Ray must find room for."""
    workers = [worker_demand(config.rollout, worker) for worker in range(config.rollout.num_workers)]
    return [*rank_demands(config.learner, config.cluster, gpu_share(config.rollout)), *workers]


async def spawn_learner(cluster: Cluster, rooms: Sequence[Room], config: RunConfig) -> LearnerGroup:
    """Start every rank, each in its room; after `LearnerGroup.kill` the same rooms take new ranks, with a new port."""
    return await _spawn_ranks(
        cluster,
        rooms,
        LearnerRank,
        config,
        learner=config.learner,
        transport=config.weights.transport,
        temperature=config.rollout.temperature,
    )


async def _spawn_ranks(
    cluster: Cluster,
    rooms: Sequence[Room],
    process: type,
    config: RunConfig | SupervisedRunConfig,
    **arguments: object,
) -> LearnerGroup:
    host, port = await cluster.address_for(rooms[0], timeout_s=config.cluster.start_timeout_s)
    actors = [
        cluster.spawn(
            constructed_by_start(process),
            room,
            {
                "rank": rank,
                "world_size": len(rooms),
                "master_address": host,
                "master_port": port,
                "model": config.model,
                "seed": config.run.seed,
                "total_steps": config.train.num_steps,
                **arguments,
            },
            environment={"OMP_NUM_THREADS": f"{room.demand.cpus:g}"},
        )
        for rank, room in enumerate(rooms)
    ]
    return LearnerGroup(actors, start_timeout_s=config.cluster.start_timeout_s, timeout_s=config.train.step_timeout_s)


def spawn_worker(cluster: Cluster, room: Room, config: RunConfig, worker: int, transport: str | None) -> Actor:
    return cluster.spawn(
        RolloutWorker,
        room,
        {"worker": worker, "rollout": config.rollout, "model": config.model, "transport": transport},
        environment=engine_environment(config.rollout, cuda=bool(room.demand.gpus)),
        concurrency=_CALLS_AT_ONCE,
    )


def worker_demand(rollout: RolloutConfig, worker: int) -> Demand:
    return Demand(
        name=f"rollout worker {worker}", cpus=rollout.cpus_per_worker, gpus=rollout.gpus_per_worker * gpu_share(rollout)
    )


def gpu_share(rollout: RolloutConfig) -> float:
    """How much of each of its GPUs a process has to itself."""
    return 0.5 if rollout.colocate else 1.0


def rank_demands(learner: OptimizerConfig, cluster: ClusterConfig, share: float = 1.0) -> list[Demand]:
    cores = len(os.sched_getaffinity(0))
    cpus = cluster.cpus_per_learner_rank or max(1, cores // learner.num_ranks)
    return [
        Demand(name=f"learner rank {rank}", cpus=cpus, gpus=cluster.gpus_per_learner_rank * share)
        for rank in range(learner.num_ranks)
    ]
