"""What every trainer writes while it runs: metrics, the live view, checkpoints.

It must not know what a step computes. Invariants: each step is recorded once; a step is checkpointed at most once; the
learner is saved only in the state that belongs to the `RunState` beside it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from services.control import run_folder, run_state
from services.control.config import RunSection, TrainConfig
from services.control.learner_group import LearnerGroup
from services.control.metrics import MetricsConfig, MetricsWriter
from services.control.progress import Progress
from services.control.run_state import RunState


def restore_point(folder: Path, progress: Progress, *, resume: bool) -> tuple[Path | None, RunState]:
    """Where a run starts: the newest whole checkpoint when it resumes, and the state in it.

    Raises:
        CheckpointError: when it resumes and no checkpoint is whole.
    """
    if not resume:
        return None, RunState(step=0, prompt_position=0)
    checkpoint, state, faults = run_state.newest(folder / run_folder.CHECKPOINTS)
    for fault in faults:
        progress.message(f"skipped a damaged checkpoint: {fault}")
    progress.message(f"resuming after step {state.step}")
    return checkpoint / run_state.LEARNER_FOLDER, state


class Recorder:
    """Records the steps of one run."""

    def __init__(
        self, run: RunSection, train: TrainConfig, metrics: MetricsConfig, *, progress: Progress, first_step: int
    ) -> None:
        self._train = train
        self._progress = progress
        self._checkpoints = run.dir / run_folder.CHECKPOINTS
        self._metrics = MetricsWriter(run.dir, metrics.sinks, resume_step=first_step, run_name=run.name)
        self._saved_step = first_step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()

    async def record(self, state: RunState, metrics: Mapping[str, float], learner: LearnerGroup) -> None:
        """Write a step's metrics, show them, and checkpoint when one is due."""
        self._metrics.record(state.step, metrics)
        self._progress.update(state.step, metrics)
        if is_due(state.step, self._train.checkpoint_every):
            await self.checkpoint(state, learner)

    async def checkpoint(self, state: RunState, learner: LearnerGroup) -> None:
        """Commit `state` with the learner's, unless that step is committed already."""
        if self._saved_step != state.step:
            await run_state.commit(
                self._checkpoints, state, save_learner=learner.save, keep=self._train.keep_checkpoints
            )
            self._saved_step = state.step


def is_due(step: int, every: int) -> bool:
    """Whether something that happens each `every` steps (0: never) happens after `step`."""
    return every > 0 and step % every == 0
