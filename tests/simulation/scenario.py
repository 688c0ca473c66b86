"""What one seed makes of a run: its settings, and which faults may happen to it how often.

It must not know how a fault is carried out. Invariant: a scenario is a function of its seed alone.
"""

import random
from dataclasses import dataclass, field
from typing import Literal

Command = Literal["scale", "pause", "resume", "drain", "checkpoint", "interrupt"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What an operator asks for, so many seconds after the process began to train; `value` is a number of workers."""

    after_s: float
    command: Command
    value: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """One run.

    Attributes:
        life_s: mean time until a worker dies; 0: none does. Likewise `awake_s` until it freezes.
        frozen_s: longest time until a frozen worker thaws; most are replaced before.
        slow: factor by which one worker in four is slower.
        broken_memory: chance that a load gives a worker other weights than were published.
        torn_weights: chance that what the learner publishes is not what its checksums say, so that all refuse it.
        dies_loading: chance that a load kills the worker.
        no_launch: chance that a launch fails, or finds no room.
        unscorable: share of the prompts that the reward refuses for good.
        flat: share of the prompts whose completions all earn the same.
        target_learner_wait: what the autoscaler aims at; 0: it is off.
        greedy_baseline: whether the greedy answer to each prompt is sampled beside its group.
        max_filtered_per_step: prompts of a step that dynamic sampling may replace; 0: there is none.
        outages: when the reward is away, as (start, end).
        learner_dies: chance that a call of the learner ends with the loss of a rank.
        learner_fails: chance that a step ends with a typed error that no restart mends.
        disk_full: chance that a checkpoint cannot be written.
        kills: seconds after which the process is killed, for each process but the last, with the turns of the loop
            until then; None: it is left alone.
        orders: what the operator asks of each process.
    """

    seed: int
    max_staleness: int
    prompts_per_step: int
    num_workers: int
    max_workers: int
    num_steps: int
    num_prompts: int
    max_groups_per_worker: int
    checkpoint_every: int
    max_restarts: int = 100
    max_losses_per_prompt: int = 100
    max_failed_prompts: int = 1000
    max_learner_restarts: int = 1000
    sample_timeout_s: float = 600.0
    step_s: float = 3.0
    life_s: float = 0.0
    awake_s: float = 0.0
    frozen_s: float = 60.0
    slow: float = 1.0
    broken_memory: float = 0.0
    torn_weights: float = 0.0
    dies_loading: float = 0.0
    no_launch: float = 0.0
    unscorable: float = 0.0
    flat: float = 0.0
    max_filtered_per_step: int = 0
    target_learner_wait: float = 0.0
    greedy_baseline: bool = False
    outages: tuple[tuple[float, float], ...] = ()
    learner_dies: float = 0.0
    learner_fails: float = 0.0
    disk_full: float = 0.0
    kills: tuple[tuple[float, int] | None, ...] = ()
    orders: tuple[tuple[Order, ...], ...] = field(default=())

    @property
    def num_processes(self) -> int:
        """Processes that faults happen to; a further one, in peace, must finish the run."""
        return len(self.kills)


def make_scenario(seed: int) -> Scenario:
    """The scenario of this seed."""
    draw = random.Random(f"scenario/{seed}")
    num_workers = draw.randint(1, 5)
    num_processes = draw.choice((1, 1, 2, 4))
    horizon_s = draw.choice((30.0, 60.0, 120.0))
    scarce = draw.random() < 0.12
    max_filtered_per_step = random.Random(f"filter/{seed}").choice((0, 0, 1, 2, 5, 20))
    max_staleness = draw.choice((0, 0, 1, 1, 2, 3, 4))
    target_learner_wait = random.Random(f"autoscale/{seed}").choice((0.0, 0.1, 0.5, 0.9))
    return Scenario(
        seed=seed,
        max_staleness=max_staleness,
        prompts_per_step=draw.randint(1, 4),
        num_workers=num_workers,
        max_workers=draw.randint(num_workers, 7),
        num_steps=draw.randint(3, 8),
        num_prompts=draw.randint(5, 40),
        max_groups_per_worker=draw.randint(1, 4),
        checkpoint_every=draw.choice((0, 1, 1, 2, 4)),
        max_restarts=draw.randint(0, 3) if scarce else 100,
        max_losses_per_prompt=draw.randint(1, 3) if scarce else 100,
        max_failed_prompts=draw.randint(0, 2) if scarce else 1000,
        max_learner_restarts=draw.randint(0, 1) if scarce else 1000,
        sample_timeout_s=draw.choice((600.0, 600.0, 600.0, 30.0)),
        step_s=draw.choice((0.1, 1.0, 3.0, 10.0)),
        life_s=_maybe(draw, 0.6, 10.0, 120.0),
        awake_s=_maybe(draw, 0.5, 10.0, 120.0),
        frozen_s=draw.choice((3.0, 30.0, 30.0)),
        slow=draw.choice((1.0, 5.0, 10.0)),
        broken_memory=_maybe(draw, 0.3, 0.02, 0.15),
        dies_loading=_maybe(draw, 0.3, 0.02, 0.15),
        no_launch=_maybe(draw, 0.3, 0.05, 0.4),
        unscorable=_maybe(draw, 0.3, 0.02, 0.15),
        outages=tuple(_outage(draw, horizon_s) for _ in range(draw.choice((0, 0, 0, 1, 2)))),
        learner_dies=_maybe(draw, 0.4, 0.02, 0.1),
        learner_fails=_maybe(draw, 0.05, 0.05, 0.2),
        disk_full=_maybe(draw, 0.2, 0.1, 0.4),
        kills=tuple(_kill(draw, horizon_s) for _ in range(num_processes)),
        orders=tuple(_orders(draw, horizon_s) for _ in range(num_processes)),
        torn_weights=_maybe(draw, 0.1, 0.05, 0.2),
        flat=_maybe(draw, 0.5, 0.1, 1.0),
        max_filtered_per_step=max_filtered_per_step,
        target_learner_wait=target_learner_wait if max_staleness else 0.0,
        greedy_baseline=max_filtered_per_step == 0 and seed % 2 == 0,
    )


def _maybe(draw: random.Random, chance: float, low: float, high: float) -> float:
    return draw.uniform(low, high) if draw.random() < chance else 0.0


def _outage(draw: random.Random, horizon_s: float) -> tuple[float, float]:
    start = draw.uniform(0.0, horizon_s)
    return start, start + draw.choice((1.0, 10.0, 40.0, 150.0))


def _kill(draw: random.Random, horizon_s: float) -> tuple[float, int] | None:
    return (draw.uniform(5.0, horizon_s), draw.randint(0, 20)) if draw.random() < 0.5 else None


def _orders(draw: random.Random, horizon_s: float) -> tuple[Order, ...]:
    """A few commands; whoever pauses a run lets it go on later."""
    orders = []
    for _ in range(draw.choice((0, 0, 2, 4, 8))):
        after_s = draw.uniform(0.0, horizon_s)
        command: Command = draw.choices(
            ("scale", "pause", "checkpoint", "drain", "interrupt"), weights=(10, 4, 4, 1, 1)
        )[0]
        orders.append(Order(after_s=after_s, command=command, value=draw.randint(0, 7)))
        if command == "pause":
            orders.append(Order(after_s=after_s + draw.uniform(0.0, 20.0), command="resume"))
    if any(order.command == "pause" for order in orders):
        orders.append(Order(after_s=horizon_s + 30.0, command="resume"))
    return tuple(sorted(orders, key=lambda order: order.after_s))
