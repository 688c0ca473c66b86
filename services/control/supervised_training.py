"""A supervised run: examples in, an export out, on the same learner, metrics and checkpoints as an RL run.

It must not know rollouts or rewards, nor what is learnt. Invariant: which examples a step learns depends on the seed
and the step alone, so a resumed run goes on as if it had never stopped.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from rollout_workers.prompts import RowOrder
from services.contracts.errors import CheckpointError, LearnerLost
from services.contracts.records import Json
from services.control import run_folder, run_state
from services.control.config import SupervisedRoot
from services.control.host import Named
from services.control.interrupts import StopRequest, catch_interrupts
from services.control.learner_group import LearnerGroup
from services.control.parts import start_supervised_learner
from services.control.progress import Progress, open_progress
from services.control.recorder import Recorder, is_due, point_to_go_back_to, restore_point
from services.control.run_state import RunState
from services.control.step_clock import StepClock
from services.control.versions import package_versions


class Job(Protocol):
    """What a supervised run learns, and what it does beside its steps.

    Attributes:
        examples: what there is to learn.
        shuffle: whether each epoch has an order of its own.
    """

    examples: Sequence[Any]  # Any: the task's own
    shuffle: bool

    @property
    def task(self) -> Named:
        """What the learner's ranks run."""
        ...

    def num_tokens(self, example: Any) -> int:  # Any: one of `examples`
        """Tokens that are learnt of an example, for the throughput."""
        ...

    async def before_steps(self, learner: LearnerGroup, tell: Callable[[str], None]) -> None:
        """Called once, before a checkpoint is loaded: the learner has the initial weights.

        Args:
            tell: shows a line to whoever watches.
        """

    async def after_step(self, state: RunState, learner: LearnerGroup) -> tuple[RunState, Mapping[str, float]]:
        """Called after each step, before its checkpoint: the state to go on with, and further metrics of the step."""
        ...

    def is_over(self, state: RunState) -> bool:
        """Whether there is no use in further steps."""
        ...

    async def finish(self, state: RunState, learner: LearnerGroup) -> Mapping[str, Json]:
        """Export; returns what the run's summary says further."""
        ...


def train_supervised(config: SupervisedRoot, job: Job, *, resume: bool) -> bool:
    """Train, checkpoint and export. The caller holds the run's folder.

    Returns:
        Whether the run was interrupted; it is checkpointed then, and not exported.

    Raises:
        TriremeError: what stopped the run.
        KeyboardInterrupt: a second Ctrl-C, or the first before there was a step to finish.
    """
    with ExitStack() as stack:
        progress = stack.enter_context(open_progress(config.train.num_steps, title=config.run.name))
        checkpoint, state = restore_point(config.run.dir, progress, resume=resume)
        try:
            state, found = asyncio.run(_run(config, job, progress, checkpoint, state))
        except asyncio.CancelledError as error:
            raise KeyboardInterrupt from error
    summary: dict[str, Json] = {
        "num_steps": state.step,
        "num_samples": state.prompt_position,
        "seconds": state.seconds,
        "versions": dict(package_versions()),
    }
    run_folder.write_summary(config.run.dir, summary | dict(found or {}))
    return found is None


Ending = tuple[RunState, Mapping[str, Json] | None]
"""The last state, and what the job found at the end; None when it was interrupted."""


async def _run(
    config: SupervisedRoot, job: Job, progress: Progress, checkpoint: Path | None, state: RunState
) -> Ending:
    """All sessions, one after the other: a further one for each learner that was lost."""
    num_losses, is_prepared = 0, False
    with catch_interrupts(progress.message) as stop:
        progress.message("starting the learner")
        async with start_supervised_learner(config, job.task) as (first, restart):
            learner = first
            while True:
                try:
                    if not is_prepared:
                        await job.before_steps(learner, progress.message)
                        is_prepared = True
                    return await _session(config, job, learner, progress, stop, checkpoint, state)
                except LearnerLost as error:
                    num_losses += 1
                    if num_losses > config.train.max_learner_restarts:
                        raise
                    progress.message(f"{error}; starting all ranks anew from the last checkpoint")
                    checkpoint, state = point_to_go_back_to(config.run.dir, progress)
                    learner = await restart(learner)


async def _session(
    config: SupervisedRoot,
    job: Job,
    learner: LearnerGroup,
    progress: Progress,
    stop: StopRequest,
    checkpoint: Path | None,
    state: RunState,
) -> Ending:
    """One learner, from a checkpoint or the beginning. Raises `LearnerLost`."""
    if checkpoint is not None:
        await learner.load(checkpoint / run_state.LEARNER_FOLDER)
    stop.finishes_step = True
    rows = RowOrder(len(job.examples), seed=config.run.seed, shuffle=job.shuffle, position=state.prompt_position)
    with Recorder(config.run, config.train, config.metrics, progress=progress, first_step=state.step) as recorder:
        while state.step < config.train.num_steps and not stop.requested and not job.is_over(state):
            batch = [job.examples[rows.draw()[1]] for _ in range(config.train.prompts_per_step)]
            state = await _step(job, learner, batch, recorder, state)
            if is_due(state.step, config.train.checkpoint_every):
                try:
                    await recorder.checkpoint(state, learner)
                except CheckpointError as error:
                    recorder.go_on_without(error)
        await recorder.checkpoint(state, learner)
        return state, None if stop.requested else await job.finish(state, learner)


async def _step(
    job: Job, learner: LearnerGroup, batch: Sequence[Any], recorder: Recorder, state: RunState
) -> RunState:  # Any: the job's examples
    clock = StepClock()
    report = await learner.step(batch)
    seconds = clock.lap()["step"]
    num_tokens = sum(job.num_tokens(example) for example in batch)
    state = replace(
        state,
        step=state.step + 1,
        prompt_position=state.prompt_position + len(batch),
        seconds=state.seconds + seconds,
    )
    state, further = await job.after_step(state, learner)
    metrics = {
        **report.metrics,
        "seconds/step": seconds,
        "samples_per_second": len(batch) / seconds,
        "tokens_per_second": num_tokens / seconds,
        **further,
    }
    recorder.record(state.step, metrics)
    return state
