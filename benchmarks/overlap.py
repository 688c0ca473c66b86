"""Rows 1b, 3c and 6: how close an asynchronous step comes to its longest part, what a sync costs it, how stale it gets.

The floor is the longest of generation, reward, training and stall, each measured alone: one worker that is kept as full
as in the run, the reward service on a batch of what it sampled, one learner on the same, each with one thread, and the
run's own stall. Generation and training are counted in tokens, of which a run's step may have more than that batch.
The run is `trireme train` with one worker and a learner of one thread. Floor and run in turn. What two cores cost each
other is told beside it: the same training while a worker that has nothing to do with it samples.

    python -m benchmarks.overlap [--pairs 3] [--steps 12] [--staleness 1] [--output results.json]
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import ray
import torch

from benchmarks.learner_throughput import start_learner
from benchmarks.pairs import Ratio, report
from benchmarks.reference_task import (
    MAX_COMPLETION_TOKENS,
    NUM_PROMPTS,
    NUM_SAMPLES,
    TrainRun,
    train,
    write_task,
)
from benchmarks.rollout_throughput import start_ray, start_worker
from benchmarks.streaming import endless_orders, num_tokens
from ppo_learner.config import LearnerConfig
from reward_server.config import RewardConfig
from rollout_workers.config import RolloutConfig
from rollout_workers.pool import RolloutPool
from services.contracts.records import Reward, RolloutGroup, ScoredGroup
from services.contracts.settings import ModelConfig
from services.control.reward_samples import to_reward_samples
from services.control.reward_service import open_reward_service

WARM_UP_STEPS = 3
ROLLOUT = RolloutConfig(
    samples_per_prompt=NUM_SAMPLES, max_completion_tokens=MAX_COMPLETION_TOKENS, kv_cache_gib=0.5, cpus_per_worker=1,
)  # fmt: skip
LEARNER = LearnerConfig(algorithm="grpo", lr=1e-6, max_tokens_per_micro_batch=2048)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """How fast each part is alone, and training while a worker samples on another core.

    Attributes:
        generation: completion tokens a second.
        reward_s: seconds for a step's samples.
        training: tokens of prompts and completions a second.
        training_beside: the same.
    """

    generation: float
    reward_s: float
    training: float
    training_beside: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What a step of a run took and trained, on average."""

    seconds: float
    stall_s: float
    completion_tokens: float
    tokens: float

    def floor_s(self, parts: Parts) -> float:
        """Seconds that the longest part alone takes for as many tokens."""
        generation_s = self.completion_tokens / parts.generation
        return max(generation_s, parts.reward_s, self.tokens / parts.training, self.stall_s)


async def stream(pool: RolloutPool, *, at_once: int, num_batches: int) -> tuple[float, list[RolloutGroup]]:
    """Keep `at_once` groups under way; tokens per second after the first batch of groups, and the last batch."""
    requests = endless_orders(ROLLOUT)
    pending = {asyncio.create_task(pool.sample(next(requests))) for _ in range(at_once)}
    groups: list[RolloutGroup] = []
    times: list[float] = []
    try:
        while len(groups) < (num_batches + 1) * NUM_PROMPTS:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                groups.append(task.result())
                times.append(time.monotonic())
                pending.add(asyncio.create_task(pool.sample(next(requests))))
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    end = (num_batches + 1) * NUM_PROMPTS
    tokens = sum(map(num_tokens, groups[NUM_PROMPTS:end]))
    return tokens / (times[end - 1] - times[NUM_PROMPTS - 1]), groups[end - NUM_PROMPTS : end]


@asynccontextmanager
async def one_worker(folder: Path) -> AsyncIterator[RolloutPool]:
    start_ray(object_store_memory=200 * 2**20)
    try:
        model = ModelConfig(path=str(folder / "model"), dtype="float32", max_length=256)
        worker = await start_worker(0, ROLLOUT, model, transport=None)
        yield RolloutPool([worker], max_outstanding=ROLLOUT.groups_at_once)
    finally:
        ray.shutdown()


async def generation(folder: Path, max_staleness: int) -> tuple[float, list[RolloutGroup]]:
    """Tokens per second of one worker alone, with as many groups under way as the run has, and a batch of them."""
    async with one_worker(folder) as pool:
        return await stream(pool, at_once=(max_staleness + 1) * NUM_PROMPTS, num_batches=5)


async def reward(folder: Path, groups: list[RolloutGroup]) -> tuple[float, list[ScoredGroup]]:
    """Seconds of the reward service alone for a batch of groups."""
    config = RewardConfig.model_validate({"services": [{"name": f"{folder / 'vowels.py'}:score"}]})
    seconds = []
    async with open_reward_service(config, log_folder=folder) as service:
        for _ in range(5):
            started = time.monotonic()
            outcomes = await asyncio.gather(*(service.score(to_reward_samples(group)) for group in groups))
            seconds.append(time.monotonic() - started)
    rewards = [tuple(one for one in outcome if isinstance(one, Reward)) for outcome in outcomes]
    return median(seconds), [ScoredGroup(group=group, rewards=one) for group, one in zip(groups, rewards, strict=True)]


def training(folder: Path, groups: list[ScoredGroup]) -> float:
    """Tokens per second of a learner alone, with one thread, on a batch of groups."""
    torch.set_num_threads(1)
    rank = start_learner(folder / "model", LEARNER, "float32")
    seconds = []
    for _ in range(6):
        started = time.monotonic()
        trained = rank.step(groups)
        seconds.append(time.monotonic() - started)
    rank.close()
    return trained.metrics["learner/tokens"] / median(seconds[1:])


async def training_beside(folder: Path, groups: list[ScoredGroup], max_staleness: int) -> float:
    """The same of this learner while a worker samples that it neither waits for nor sends weights to."""
    async with one_worker(folder) as pool:
        sampling = asyncio.create_task(stream(pool, at_once=(max_staleness + 1) * NUM_PROMPTS, num_batches=1000))
        try:
            return await asyncio.to_thread(training, folder, groups)
        finally:
            sampling.cancel()
            await asyncio.wait([sampling])


async def measured_parts(folder: Path, max_staleness: int) -> Parts:
    tokens_per_second, groups = await generation(folder, max_staleness)
    reward_s, scored = await reward(folder, groups)
    return Parts(
        generation=tokens_per_second,
        reward_s=reward_s,
        training=training(folder, scored),
        training_beside=await training_beside(folder, scored, max_staleness),
    )


def asynchronous_run(folder: Path, num_steps: int, max_staleness: int) -> TrainRun:
    changes = {
        "train": {"num_steps": num_steps, "max_staleness": max_staleness},
        "rollout": {"num_workers": 1},
        "cluster": {"cpus_per_learner_rank": 1},
    }
    return train(folder, changes)


def step_of(run: TrainRun) -> Step:
    """The average of the steps after the warm-up."""
    counted = run.steps[WARM_UP_STEPS:]
    return Step(
        seconds=fmean(step["seconds/step"] for step in counted),
        stall_s=run.median("sync/stall_seconds", skip=WARM_UP_STEPS),
        completion_tokens=fmean(step["completion_tokens/mean"] for step in counted) * NUM_PROMPTS * NUM_SAMPLES,
        tokens=fmean(step["learner/tokens"] for step in counted),
    )


def measure(folder: Path, arguments: argparse.Namespace) -> tuple[list[Ratio], dict[str, float]]:
    steps, floors, besides, means, largest = [], [], [], [], []
    for _ in range(arguments.pairs):
        parts = asyncio.run(measured_parts(folder, arguments.staleness))
        run = asynchronous_run(folder, arguments.steps, arguments.staleness)
        step = step_of(run)
        steps.append(step)
        floors.append(step.floor_s(parts))
        besides.append(max(floors[-1], step.tokens / parts.training_beside))
        means.append(fmean(one["staleness/mean"] for one in run.steps[WARM_UP_STEPS:]))
        largest.append(max(one["staleness/max"] for one in run.steps[WARM_UP_STEPS:]))
        print(
            f"alone: generation {parts.generation:.0f} tokens/s, reward {parts.reward_s:.3f} s, training "
            f"{parts.training:.0f} tokens/s, {parts.training_beside:.0f} beside a worker; step {step.seconds:.2f} s of "
            f"{step.tokens:.0f} tokens, {step.completion_tokens:.0f} of them sampled, stall {step.stall_s:.3f} s, "
            f"waiting {run.median('seconds/waiting', skip=WARM_UP_STEPS):.2f} s, "
            f"learning {run.median('seconds/learning', skip=WARM_UP_STEPS):.2f} s"
        )
    ours = [step.tokens / step.seconds for step in steps]
    ratios = [
        Ratio(
            name=f"1b own floor ÷ step time, max_staleness {arguments.staleness}", unit="tokens/s",
            ours=ours, theirs=[step.tokens / floor for step, floor in zip(steps, floors, strict=True)], aim=0.93,
        ),
        Ratio(
            name="1b training beside a worker ÷ step time", unit="tokens/s",
            ours=ours, theirs=[step.tokens / beside for step, beside in zip(steps, besides, strict=True)], aim=1.0,
        ),
        Ratio(
            name="3c decode stall ÷ step time", unit="ms",
            ours=[1000 * step.stall_s for step in steps], theirs=[1000 * step.seconds for step in steps], aim=0.01,
        ),
    ]  # fmt: skip
    return ratios, {"6 staleness at that efficiency, mean": fmean(means), "6 staleness, largest": max(largest)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--staleness", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        write_task(Path(temporary), 2 * arguments.steps)
        ratios, facts = measure(Path(temporary), arguments)
    report(ratios, output=arguments.output, facts=facts)


if __name__ == "__main__":
    main()
