"""A supervised run: demonstrations in, an export out, on the same learner, metrics and checkpoints as an RL run.

It must not know rollouts or rewards. Invariant: which demonstrations a step learns depends on the seed and the step
alone, so a resumed run goes on as if it had never stopped.
"""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rollout_workers.prompts import RowOrder
from services.contracts.records import Demonstration, Json
from services.control import run_folder, run_state
from services.control.config import SupervisedRunConfig
from services.control.interrupts import catch_interrupts
from services.control.learner_group import LearnerGroup
from services.control.parts import start_supervised_learner
from services.control.progress import Progress, open_progress
from services.control.recorder import Recorder, is_due, restore_point
from services.control.run_state import RunState
from services.control.step_clock import StepClock
from services.control.versions import package_versions


def train_supervised(config: SupervisedRunConfig, demonstrations: Sequence[Demonstration], *, resume: bool) -> bool:
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
        recorder = stack.enter_context(
            Recorder(config.run, config.train, config.metrics, progress=progress, first_step=state.step)
        )
        try:
            state, interrupted = asyncio.run(_run(config, demonstrations, recorder, progress, checkpoint, state))
        except asyncio.CancelledError as error:
            raise KeyboardInterrupt from error
    summary: dict[str, Json] = {
        "num_steps": state.step,
        "num_samples": state.prompt_position,
        "seconds": state.seconds,
        "versions": dict(package_versions()),
    }
    run_folder.write_summary(config.run.dir, summary)
    return interrupted


async def _run(
    config: SupervisedRunConfig,
    demonstrations: Sequence[Demonstration],
    recorder: Recorder,
    progress: Progress,
    checkpoint: Path | None,
    state: RunState,
) -> tuple[RunState, bool]:
    with catch_interrupts(progress.message) as stop:
        progress.message("starting the learner")
        async with start_supervised_learner(config) as learner:
            if checkpoint is not None:
                await learner.load(checkpoint / run_state.LEARNER_FOLDER)
            stop.finishes_step = True
            rows = RowOrder(
                len(demonstrations),
                seed=config.run.seed,
                shuffle=config.data.shuffle,
                position=state.prompt_position,
            )
            while state.step < config.train.num_steps and not stop.requested:
                batch = [demonstrations[rows.draw()[1]] for _ in range(config.train.prompts_per_step)]
                state = await _step(learner, batch, recorder, state)
                if is_due(state.step, config.train.checkpoint_every):
                    await recorder.checkpoint(state, learner)
            await recorder.checkpoint(state, learner)
            if not stop.requested:
                await learner.export(config.run.dir / run_folder.EXPORT)
            return state, stop.requested


async def _step(learner: LearnerGroup, batch: Sequence[Demonstration], recorder: Recorder, state: RunState) -> RunState:
    clock = StepClock()
    report = await learner.step(batch)
    seconds = clock.lap()["step"]
    num_tokens = sum(sum(demonstration.loss_mask) for demonstration in batch)
    state = RunState(
        step=state.step + 1,
        prompt_position=state.prompt_position + len(batch),
        seconds=state.seconds + seconds,
    )
    metrics = {
        **report.metrics,
        "seconds/step": seconds,
        "samples_per_second": len(batch) / seconds,
        "tokens_per_second": num_tokens / seconds,
    }
    recorder.record(state.step, metrics)
    return state
