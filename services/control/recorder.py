"""What every trainer writes while it runs: metrics, the live view, checkpoints.

It must not know what a step computes. Invariants: each step is recorded once; a step is checkpointed at most once; the
learner is saved only in the state that belongs to the `RunState` beside it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from services.contracts.errors import CheckpointError
from services.control import run_folder, run_state
from services.control.config import RunSection, TrainConfig
from services.control.learner_group import LearnerGroup
from services.control.metrics import MetricsConfig, MetricsWriter
from services.control.progress import Progress
from services.control.rollout_buffer import Waiting
from services.control.run_state import RunState


def restore_point(folder: Path, progress: Progress, *, resume: bool) -> tuple[Path | None, RunState]:
    """Where a run starts: the newest whole checkpoint when it resumes, and the state in it.

    Raises:
        CheckpointError: when it resumes and no checkpoint is whole.
    """
    if not resume:
        return None, RunState(step=0, prompt_position=0)
    checkpoints = folder / run_folder.CHECKPOINTS
    run_state.finish_commit(checkpoints)
    checkpoint, state, faults = run_state.newest(checkpoints)
    for fault in faults:
        progress.message(f"skipped a damaged checkpoint: {fault}")
    progress.message(f"resuming after step {state.step}")
    return checkpoint, state


def point_to_go_back_to(folder: Path, progress: Progress) -> tuple[Path | None, RunState]:
    """Where a run that lost its learner goes on: at its newest whole checkpoint or, before there is one, the beginning.

    Raises:
        CheckpointError: there are checkpoints, and none is whole.
    """
    return restore_point(folder, progress, resume=bool(run_state.committed(folder / run_folder.CHECKPOINTS)))


class Recorder:
    """Records the steps of one run.

    Attributes:
        saved_step: the step of the newest checkpoint, or the first one.
    """

    def __init__(
        self, run: RunSection, train: TrainConfig, metrics: MetricsConfig, *, progress: Progress, first_step: int
    ) -> None:
        self._train = train
        self._progress = progress
        self._checkpoints = run.dir / run_folder.CHECKPOINTS
        self._num_failed = 0
        self._metrics = MetricsWriter(run.dir, metrics.sinks, resume_step=first_step, run_name=run.name)
        self.saved_step = first_step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a step's metrics, and show them."""
        self._metrics.record(step, metrics)
        self._progress.update(step, metrics)

    async def checkpoint(self, state: RunState, learner: LearnerGroup, *, waiting: Sequence[Waiting] = ()) -> Path:
        """Commit `state` with the learner's, unless that step is committed already; returns where it lies.

        Raises:
            CheckpointError: the disk refuses; the checkpoints before stay as they are.
        """
        if self.saved_step != state.step:
            await run_state.commit(
                self._checkpoints, state, waiting=waiting, save_learner=learner.save, keep=self._train.keep_checkpoints
            )
            self.saved_step = state.step
            self._num_failed = 0
        return self._checkpoints / f"step_{state.step}"

    def go_on_without(self, error: CheckpointError) -> None:
        """Say that the run goes on without a checkpoint that failed. Raises it when too many in a row did."""
        self._num_failed += 1
        if self._num_failed >= self._train.max_failed_checkpoints:
            raise error
        self._progress.message(f"going on without a checkpoint: {error}")


def is_due(step: int, every: int) -> bool:
    """Whether something that happens each `every` steps (0: never) happens after `step`."""
    return every > 0 and step % every == 0
