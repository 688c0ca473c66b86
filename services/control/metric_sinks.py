"""Where metrics go besides `metrics.jsonl`: one class for each destination, by name in `SINKS`.

It must not know what a metric means. Invariant: a package that only one destination needs is imported when that
destination is asked for, and never before.
"""

import math
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from services.contracts.errors import UserError

TENSORBOARD_FOLDER = "tensorboard"
_WANDB_RUN_ID = "wandb_run_id"


class Sink(Protocol):
    """A destination: constructed with the run's folder, its name, and the steps trained so far."""

    def __init__(self, folder: Path, *, run_name: str, resume_step: int) -> None: ...

    def record(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoardSink:
    """Event files below `tensorboard/`, written without TensorFlow or torch."""

    def __init__(self, folder: Path, *, run_name: str, resume_step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2  # has no types
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # same

        self._event = event_pb2.Event
        self._summary = summary_pb2.Summary
        self._writer = EventFileWriter(str(folder / TENSORBOARD_FOLDER), flush_secs=5)
        # A session start makes TensorBoard forget the points of steps that a resumed run makes again.
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.add_event(self._event(step=resume_step + 1, session_log=session))

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._writer.add_event(self._event(step=step, wall_time=time.time(), summary=self._summary(value=values)))

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """A run on Weights & Biases; a resumed run goes on in the same one.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(self, folder: Path, *, run_name: str, resume_step: int) -> None:
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise UserError(
                "metrics.sinks has 'wandb', which is not installed; pip install 'trireme-rlhf[wandb]', or remove it"
            ) from error
        identity = folder / _WANDB_RUN_ID
        if not (resume_step and identity.exists()):
            identity.write_text(uuid.uuid4().hex)
        self._run = wandb.init(
            project="trireme", name=run_name, id=identity.read_text(), dir=str(folder), resume="allow"
        )

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({name: value for name, value in metrics.items() if math.isfinite(value)}, step=step)

    def close(self) -> None:
        self._run.finish()


SINKS: dict[str, type[Sink]] = {
    "tensorboard": TensorBoardSink,
    "wandb": WandbSink,
}
