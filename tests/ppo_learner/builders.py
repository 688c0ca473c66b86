"""Scored groups, learner ranks and processes for the learner's tests.

Invariant: the same arguments give the same groups, and no process outlives the call that started it.
"""

import multiprocessing
import random
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch

from ppo_learner.config import LearnerConfig
from ppo_learner.learner import LearnerRank
from ppo_learner.lora import merged
from ppo_learner.ranks import Ranks
from services.contracts.records import NOT_SAMPLED, Prompt, Reward, Rollout, RolloutGroup, ScoredGroup, StepReward
from services.contracts.settings import ModelConfig
from services.transport.ports import free_port

VOCABULARY = 43
ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))


def make_rollout(mask: Sequence[int], *, draw: random.Random, sample_index: int = 0) -> Rollout:
    """Random tokens, sampled where `mask` is 1."""
    return Rollout(
        prompt_id="0-0",
        sample_index=sample_index,
        token_ids=array("i", (draw.randrange(2, VOCABULARY) for _ in mask)),
        logprobs=array("f", (-draw.uniform(2, 4) if sampled else 0.0 for sampled in mask)),
        policy_versions=array("i", (0 if sampled else NOT_SAMPLED for sampled in mask)),
        loss_mask=array("b", mask),
        num_prompt_tokens=list(mask).index(1) if 1 in mask else len(mask),
        completion="",
        finish_reason="stop",
    )


def make_group(masks: Sequence[Sequence[int]], rewards: Sequence[float], *, seed: int = 0) -> ScoredGroup:
    """One group with a rollout for each mask; the greedy answer to its prompt earned their mean."""
    draw = random.Random(seed)
    rollouts = tuple(make_rollout(mask, draw=draw, sample_index=index) for index, mask in enumerate(masks))
    prompt = Prompt(id="0-0", text="", token_ids=rollouts[0].token_ids[: rollouts[0].num_prompt_tokens])
    return ScoredGroup(
        group=RolloutGroup(prompt=prompt, rollouts=rollouts),
        rewards=tuple(Reward(value=value, components={"shape": value / 2}) for value in rewards),
        baseline=fmean(rewards),
    )


def with_steps(scored: ScoredGroup, steps: Sequence[Sequence[tuple[int, float]]]) -> ScoredGroup:
    """The group with steps for each rollout: (which sampled token ends it, its reward)."""
    rewards = []
    for rollout, reward, ends in zip(scored.group.rollouts, scored.rewards, steps, strict=True):
        positions = [position for position, sampled in enumerate(rollout.loss_mask) if sampled]
        found = (
            StepReward(start=n, end=n + 1, value=value, token=positions[end]) for n, (end, value) in enumerate(ends)
        )
        rewards.append(replace(reward, steps=tuple(found)))
    return replace(scored, rewards=tuple(rewards))


def random_groups(seed: int, *, num_groups: int = 3, group_size: int = 4, longest: int = 24) -> list[ScoredGroup]:
    """Groups of completions of 1 to `longest` tokens, every third with a tool's answer in the middle, and up to three
    steps in each."""
    draw = random.Random(seed)

    def mask() -> list[int]:
        length = draw.randint(1, longest)
        hole = [0] * 3 + [1] * 4 if length % 3 == 0 else []
        return [0] * draw.randint(3, 6) + [1] * length + hole

    groups = [
        make_group([mask() for _ in range(group_size)], [draw.random() for _ in range(group_size)], seed=seed + index)
        for index in range(num_groups)
    ]
    return [with_steps(scored, [random_steps(rollout, draw) for rollout in scored.group.rollouts]) for scored in groups]


def random_steps(rollout: Rollout, draw: random.Random) -> list[tuple[int, float]]:
    """Up to three steps, for `with_steps`."""
    ends = sorted(draw.choices(range(sum(rollout.loss_mask)), k=draw.randint(0, 3)))
    return [(end, draw.uniform(-1, 1)) for end in ends]


def start_rank(
    config: LearnerConfig,
    model: Path,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    rank: int = 0,
    world_size: int = 1,
    port: int | None = None,
    **overrides: Any,
) -> LearnerRank:
    """A learner rank in this process; the caller closes it before it starts the next."""
    arguments: dict[str, Any] = {
        "learner": config.for_run(max_staleness=0, max_completion_tokens=32),
        "model": ModelConfig(path=str(model), dtype=dtype),
        "transport": "disk",
        "rank": rank,
        "world_size": world_size,
        "master_address": "127.0.0.1",
        "master_port": port or free_port("127.0.0.1"),
        "seed": 0,
        "temperature": 1.0,
        "total_steps": 10,
    }
    return LearnerRank(**(arguments | overrides))


def weights_of(rank: LearnerRank) -> dict[str, torch.Tensor]:
    """A copy of every weight, of policy and critic, on every rank, and of moving averages; adapters are merged."""
    networks = rank._networks
    engines = {"policy": networks.policy} | ({"critic": networks.critic} if networks.critic else {})
    weights = {
        f"{label}.{name}": tensor.clone()
        for label, engine in engines.items()
        for name, tensor in merged(engine.full_parameters(), engine.module)
    }
    averages = merged(networks.policy.averaged_parameters() or (), networks.policy.module)
    return weights | {f"average.{name}": tensor.clone() for name, tensor in averages}


def moved_out(rank: LearnerRank) -> dict[str, set[str]]:
    """What of policy and critic lies in the machine's memory, as DeepSpeed has it: without a GPU nothing else tells."""
    networks = rank._networks
    engines = {"policy": networks.policy} | ({"critic": networks.critic} if networks.critic else {})
    flags = {"optimizer": ("cpu_offload", "offload_optimizer"), "parameters": ("offload_param",)}  # Of any ZeRO stage.
    return {
        label: {
            what for what, names in flags.items() if any(getattr(engine._engine.optimizer, n, False) for n in names)
        }
        for label, engine in engines.items()
    }


def is_of_the_machine(metric: str) -> bool:
    """Whether a metric tells of the machine, which is another at each run: seconds and memory."""
    return "second" in metric or "memory" in metric


MUON_WITHIN = 1e-3
"""For `same_update` with muon, which orthogonalises in bfloat16: on a CPU that computes in it, the last bit of a
gradient has changed 2e-5 of an update's square."""


def same_update(
    start: Mapping[str, torch.Tensor],
    some: Mapping[str, torch.Tensor],
    others: Mapping[str, torch.Tensor],
    *,
    within: float = 1e-5,
) -> bool:
    """Whether two updates from `start` are the same but for rounding: the square of what lies between is at most
    `within` of theirs.

    AdamW divides each gradient by its own size, so a weight whose gradient is all rounding may go either way: the
    updates are compared as whole vectors.
    """
    assert start.keys() == some.keys() == others.keys()
    moved = sum(float((some[name].double() - start[name].double()).square().sum()) for name in start)
    apart = sum(float((some[name].double() - others[name].double()).square().sum()) for name in start)
    return moved > 0 and apart < within * moved


def outcomes_of_ranks(
    cases: Iterable[str], train: Callable[..., None], model: Path, folder: Path, *, deadline_s: float
) -> dict[str, list[dict[str, Any]]]:
    """For each case what every rank found: two ranks where its name has "zero" in it, and before them one elsewhere.

    Args:
        train: called with case, model, folder, `rank`, `world_size` and three free `ports`; leaves `outcome_RANK.pt` in
            the folder.
    """
    cases = list(cases)
    for name in cases:
        (folder / name).mkdir()
    two = [name for name in cases if "zero" in name]
    for name in cases:
        if name not in two:
            train(name, model, folder / name, rank=0, world_size=1, ports=[free_port("127.0.0.1") for _ in range(3)])
    run_as_pair(_train_as_one_of_two, train, two, model, folder, deadline_s=deadline_s)
    return {name: [torch.load(path) for path in sorted((folder / name).glob("outcome_*.pt"))] for name in cases}


def _train_as_one_of_two(
    rank: int, meet: Callable[[], int], train: Callable[..., None], cases: Sequence[str], model: Path, folder: Path
) -> None:
    for name in cases:
        train(name, model, folder / name, rank=rank, world_size=2, ports=[meet() for _ in range(3)])


def run_as_pair(work: Callable[..., None], *arguments: Any, deadline_s: float) -> None:
    """Run `work(rank, meet, *arguments)` in a fresh process for each of two ranks.

    `meet()` is the same free port for both, found when they need it: one that was found long before may have become an
    earlier case's by then.
    """
    ends = multiprocessing.get_context("spawn").Pipe()
    each = [(work, rank, end, arguments) for rank, end in enumerate(ends)]
    run_in_processes(_work_as_one_of_two, each, deadline_s=deadline_s)


def _work_as_one_of_two(work: Callable[..., None], rank: int, other: Connection, arguments: Sequence[Any]) -> None:
    torch.set_num_threads(1)

    def meet() -> int:
        if rank == 1:
            return int(other.recv())
        port = free_port("127.0.0.1")
        other.send(port)
        return port

    work(rank, meet, *arguments)


def run_in_processes(work: Callable[..., None], arguments: Sequence[tuple[Any, ...]], *, deadline_s: float) -> None:
    """Run `work(*arguments[i])` in a fresh process each; whatever is left at the deadline is killed by its id."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=each, daemon=True) for each in arguments]
    for process in processes:
        process.start()
    end = time.monotonic() + deadline_s
    try:
        while any(process.is_alive() for process in processes) and time.monotonic() < end:
            wait([process.sentinel for process in processes if process.is_alive()], timeout=1.0)
            if any(process.exitcode for process in processes):
                break  # The others wait for it in a collective.
        codes = [process.exitcode for process in processes]
        assert codes == [0] * len(processes), f"exit codes {codes} after at most {deadline_s} s (None: still running)"
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
