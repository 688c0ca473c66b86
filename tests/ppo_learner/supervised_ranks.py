"""Ranks of supervised training, whatever their task, as tests start and compare them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ppo_learner.optimizer_config import OptimizerConfig
from ppo_learner.supervised import SupervisedRank
from ppo_learner.task import Task
from services.contracts.settings import ModelConfig
from services.transport.ports import free_port

COUNTS = (5, 4, 1, 5)
"""Examples of each step: even and uneven shares for two ranks, and nothing for one of them."""

Make = Callable[[int, int], Sequence[Any]]  # Any: the task's own examples
"""Examples of a seed, so many of them."""


def start_supervised(
    task: type[Task],
    model: Path,
    learner: OptimizerConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
    port: int | None = None,
) -> SupervisedRank:
    """A rank in this process; the caller closes it before it starts the next."""
    return SupervisedRank(
        task=task,
        learner=learner,
        model=ModelConfig(path=str(model), dtype="float32"),
        rank=rank,
        world_size=world_size,
        master_address="127.0.0.1",
        master_port=port or free_port("127.0.0.1"),
        seed=0,
        total_steps=10,
    )


def train_straight_and_resumed(
    start: Callable[[int], SupervisedRank],
    make: Make,
    others: Sequence[Any],  # Any: ditto
    folder: Path,
    *,
    rank: int,
    ports: Sequence[int],
) -> None:
    """Four steps in one go, and two and two around a checkpoint; leave what came of them in `folder`.

    Args:
        start: a rank that meets its like at a port.
        others: what is evaluated and answered after the four steps.
    """
    learner = start(ports[0])
    first = {key: weight.clone() for key, weight in learner._network.full_parameters()}
    reports = []
    for step, count in enumerate(COUNTS):
        reports.append(learner.step(make(step, count)))
        if step == 1:
            learner.save(folder / "checkpoint")
    learner.evaluate(others)
    weights = {key: weight.clone() for key, weight in learner._network.full_parameters()}
    answers = learner.answers(others)
    learner.close()
    resumed = start(ports[1])
    resumed.load(folder / "checkpoint")
    again = [resumed.step(make(step, COUNTS[step])) for step in (2, 3)]
    outcome = {
        "start": first,
        "weights": weights,
        "resumed": {key: weight.clone() for key, weight in resumed._network.full_parameters()},
        "losses": [report.metrics["loss"] for report in reports],
        "losses_resumed": [report.metrics["loss"] for report in again],
        "answers": answers,
    }
    resumed.close()
    torch.save(outcome, folder / f"outcome_{rank}.pt")
