"""Starts the real parts of a run (reward service, Ray, learner ranks, rollout workers) and ends them again.

It must not know the loop. Invariants: every part is ready when `start_parts` yields; whatever was started is ended on
the way out, in whichever way that is; the parts start side by side, because each takes seconds.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field

from ppo_learner.optimizer_config import OptimizerConfig
from reward_server.config import RewardConfig
from rollout_workers.fleet import Fleet
from rollout_workers.pool import RolloutPool
from rollout_workers.sleeping import all_asleep
from services.control.cluster import Cluster, Room
from services.control.config import ClusterConfig, RunConfig, SupervisedRoot, TrainerRoot
from services.control.host import Named
from services.control.learner_group import LearnerGroup
from services.control.placement import Demand
from services.control.preflight import refuse_reward_without_steps
from services.control.remote_worker import RayLauncher, RemoteWorker, gpu_share, worker_demand
from services.control.reward_service import GOLD_LOG_FILE, LOG_FILE, open_reward_service
from services.control.run_events import RunEvents
from services.transport.reward_client import RewardClient
from services.transport.tasks import all_or_cancel

RestartLearner = Callable[[LearnerGroup], Awaitable[LearnerGroup]]
"""Ends all ranks of a learner and starts new ones in their rooms, which have trained nothing."""
_KILL_TIMEOUT_S = 30.0

# By name, as they need torch, which the command itself does without: it would start seconds later.
_LEARNER_RANK = Named(path="ppo_learner.learner:LearnerRank")
_SUPERVISED_RANK = Named(path="ppo_learner.supervised:SupervisedRank")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """The running parts around the learner.

    Attributes:
        gold: where held-out completions have a further reward.
        suite_rewards: of the suites that have one of their own, by their names.
    """

    rollouts: RolloutPool
    fleet: Fleet
    rewards: RewardClient
    gold: RewardClient | None = None
    suite_rewards: Mapping[str, RewardClient] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingParts(Parts):
    """The running parts of an RL run.

    Attributes:
        learner: the ranks that were started first.
        restart_learner: ends all ranks of a learner and starts new ones in their rooms, with a higher generation.
    """

    learner: LearnerGroup
    restart_learner: RestartLearner


@asynccontextmanager
async def start_parts(config: RunConfig, events: RunEvents) -> AsyncIterator[TrainingParts]:
    """Start everything an RL run needs.

    Args:
        events: is told which workers come and go.

    Raises:
        UserError: a reward service that does not answer as it should, or a cluster that is too small.
        DeadlineExceeded: a part that is not ready in time.
    """
    async with AsyncExitStack() as stack:
        rewards, gold, suite_rewards = await _open_rewards(config, stack)
        refuse_reward_without_steps(config.learner, rewards.description)
        ranks = _learner_demands(config)
        cluster = stack.enter_context(_open_cluster(config, ranks))
        rooms = await cluster.reserve_together(ranks, timeout_s=config.cluster.start_timeout_s)
        gpu = asyncio.Lock() if config.rollout.colocate else None
        fleet = _fleet(cluster, config, events, transport=config.weights.transport, gpu=gpu)
        stack.push_async_callback(fleet.stop)
        learners_turn = _learners_turn(fleet.pool, gpu)
        learner = await spawn_learner(cluster, rooms, config, around_step=learners_turn)
        if gpu is None:
            await all_or_cancel([fleet.start(config.rollout.num_workers), learner.ready()])
        else:
            # vLLM takes for its own what others allocate while it starts, so it starts alone, and then sleeps.
            await fleet.start(config.rollout.num_workers)
            async with learners_turn():
                await learner.ready()

        async def restart_learner(lost: LearnerGroup) -> LearnerGroup:
            await lost.kill(timeout_s=_KILL_TIMEOUT_S)
            generation = lost.generation + 1
            new = await spawn_learner(cluster, rooms, config, generation=generation, around_step=learners_turn)
            async with learners_turn():
                await new.ready()
            return new

        yield TrainingParts(
            rollouts=fleet.pool,
            fleet=fleet,
            rewards=rewards,
            gold=gold,
            suite_rewards=suite_rewards,
            learner=learner,
            restart_learner=restart_learner,
        )


@asynccontextmanager
async def start_samplers(config: RunConfig) -> AsyncIterator[Parts]:
    """Start what an evaluation needs: rollout workers with the model's own weights, and the reward service."""
    async with AsyncExitStack() as stack:
        rewards, gold, suite_rewards = await _open_rewards(config, stack)
        fleet = await stack.enter_async_context(start_workers(config))
        yield Parts(rollouts=fleet.pool, fleet=fleet, rewards=rewards, gold=gold, suite_rewards=suite_rewards)


@asynccontextmanager
async def start_workers(config: RunConfig) -> AsyncIterator[Fleet]:
    """Start rollout workers with the model's own weights, and nothing else."""
    with _open_cluster(config, []) as cluster:
        fleet = _fleet(cluster, config, None, transport=None)
        try:
            await fleet.start(config.rollout.num_workers)
            yield fleet
        finally:
            await fleet.stop()


@asynccontextmanager
async def start_supervised_learner(
    config: SupervisedRoot, task: Named
) -> AsyncIterator[tuple[LearnerGroup, RestartLearner]]:
    """Start the ranks of a supervised run; gives what starts new ones in their place, too."""
    ranks = rank_demands(config.learner, config.cluster)
    with Cluster(config.cluster, ranks) as cluster:
        rooms = await cluster.reserve_together(ranks, timeout_s=config.cluster.start_timeout_s)

        async def spawn() -> LearnerGroup:
            group = await _spawn_ranks(cluster, rooms, _SUPERVISED_RANK, config, task=task, learner=config.learner)
            await group.ready()
            return group

        async def restart(lost: LearnerGroup) -> LearnerGroup:
            await lost.kill(timeout_s=_KILL_TIMEOUT_S)
            return await spawn()

        yield await spawn(), restart


async def _open_rewards(
    config: RunConfig, stack: AsyncExitStack
) -> tuple[RewardClient, RewardClient | None, dict[str, RewardClient]]:
    """The reward that trains, the gold one where there is one, and those of suites that have their own."""

    async def opened(reward: RewardConfig, log_file: str) -> RewardClient:
        service = open_reward_service(reward, log_folder=config.run.dir, log_file=log_file)
        return await stack.enter_async_context(service)

    rewards = await opened(config.reward, LOG_FILE)
    gold = await opened(config.gold, GOLD_LOG_FILE) if config.gold else None
    suites = {suite.name: suite.reward for suite in config.evaluate.suites if suite.reward}
    return rewards, gold, {name: await opened(own, f"suite_{name}_server.log") for name, own in suites.items()}


def run_demands(config: RunConfig) -> list[Demand]:
    """The processes of an RL run that Ray must find room for."""
    return [*_learner_demands(config), *_worker_demands(config)]


async def spawn_learner(
    cluster: Cluster,
    rooms: Sequence[Room],
    config: RunConfig,
    *,
    generation: int = 0,
    around_step: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
) -> LearnerGroup:
    """Start every rank, each in its room; after `LearnerGroup.kill` the same rooms take new ranks, with a new port."""
    return await _spawn_ranks(
        cluster,
        rooms,
        _LEARNER_RANK,
        config,
        learner=config.learner.for_run(
            max_staleness=config.train.max_staleness, max_completion_tokens=config.rollout.max_completion_tokens
        ),
        transport=config.weights.transport,
        weights_folder=config.weights.folder,
        temperature=config.rollout.temperature,
        generation=generation,
        around_step=around_step,
    )


async def _spawn_ranks(
    cluster: Cluster,
    rooms: Sequence[Room],
    process: Named,
    config: TrainerRoot,
    *,
    generation: int = 0,
    around_step: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    **arguments: object,
) -> LearnerGroup:
    host, port = await cluster.address_for(rooms[0], timeout_s=config.cluster.start_timeout_s)
    actors = [
        cluster.spawn(
            process,
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
            pulse=True,
        )
        for rank, room in enumerate(rooms)
    ]
    return LearnerGroup(
        actors,
        start_timeout_s=config.cluster.start_timeout_s,
        timeout_s=config.train.step_timeout_s,
        pulse_timeout_s=config.train.pulse_timeout_s,
        generation=generation,
        around_step=around_step,
    )


def rank_demands(
    learner: OptimizerConfig, cluster: ClusterConfig, *, cores_taken: int = 0, share: float = 1.0
) -> list[Demand]:
    """What each learner rank needs.

    Args:
        cores_taken: cores of this machine that others keep busy while the learner works.
        share: how much of its GPU a rank has to itself.
    """
    cores = len(os.sched_getaffinity(0)) - cores_taken
    cpus = cluster.cpus_per_learner_rank or min(max(1, cores // learner.num_ranks), _most_threads(cluster))
    return [
        Demand(name=f"learner rank {rank}", cpus=cpus, gpus=cluster.gpus_per_learner_rank * share)
        for rank in range(learner.num_ranks)
    ]


def _most_threads(cluster: ClusterConfig) -> int:
    """What the user's OMP_NUM_THREADS permits; in a job of an existing cluster Ray has set it, to 1."""
    threads = os.environ.get("OMP_NUM_THREADS", "") if cluster.address is None else ""
    return int(threads) if threads.isdecimal() and int(threads) else sys.maxsize


def _learner_demands(config: RunConfig) -> list[Demand]:
    """In an asynchronous run the workers never rest, and threads that have to share a core with them crawl."""
    is_busy = config.train.max_staleness > 0 and config.cluster.address is None
    cores_taken = config.rollout.num_workers * config.rollout.cpus_per_worker if is_busy else 0
    share = gpu_share(config.rollout)
    return rank_demands(config.learner, config.cluster, cores_taken=cores_taken, share=share)


def _worker_demands(config: RunConfig) -> list[Demand]:
    return [worker_demand(config.rollout, number) for number in range(config.rollout.num_workers)]


def _open_cluster(config: RunConfig, ranks: Sequence[Demand]) -> Cluster:
    numbers = range(config.rollout.num_workers, config.rollout.max_workers)
    spare = [worker_demand(config.rollout, number) for number in numbers]
    return Cluster(config.cluster, [*ranks, *_worker_demands(config)], spare=spare)


def _fleet(
    cluster: Cluster,
    config: RunConfig,
    events: RunEvents | None,
    *,
    transport: str | None,
    gpu: asyncio.Lock | None = None,
) -> Fleet:
    pool = RolloutPool(
        max_outstanding=config.rollout.groups_at_once,
        max_attempts=config.rollout.max_losses_per_prompt,
        watcher=events,
    )
    return Fleet(pool, RayLauncher(cluster, config, transport=transport), config.rollout, watcher=events, gpu=gpu)


def _learners_turn(pool: RolloutPool, gpu: asyncio.Lock | None) -> Callable[[], AbstractAsyncContextManager[None]]:
    """In which the pool's workers sleep and none starts, where they share a GPU with the learner."""
    if gpu is None:
        return nullcontext
    return lambda: all_asleep(gpu, lambda: [one for one in pool.workers if isinstance(one, RemoteWorker)])
