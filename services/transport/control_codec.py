"""The status of a run to a protobuf message and back.

It must not know who asks or what a status means. Invariant: a status decodes to what was encoded, except that a lone
surrogate in its texts becomes a question mark.
"""

from collections.abc import Mapping
from typing import TypeVar, get_args

from services.contracts.run_status import RunPhase, RunStatus, WorkerPhase, WorkerStatus
from services.protos.control.v1 import control_pb2

SERVICE_NAME = "trireme.control.v1.ControlService"
Phase = TypeVar("Phase", RunPhase, WorkerPhase)

_RUN_PHASES: Mapping[int, RunPhase] = {
    control_pb2.RunPhase.Value(f"RUN_PHASE_{phase.upper()}"): phase for phase in get_args(RunPhase)
}
_WORKER_PHASES: Mapping[int, WorkerPhase] = {
    control_pb2.WorkerPhase.Value(f"WORKER_PHASE_{phase.upper()}"): phase for phase in get_args(WorkerPhase)
}


def encode_status(status: RunStatus) -> control_pb2.StatusResponse:
    """The status as a message."""
    return control_pb2.StatusResponse(
        name=_text(status.name),
        phase=f"RUN_PHASE_{status.phase.upper()}",
        step=status.step,
        num_steps=status.num_steps,
        version=status.version,
        max_staleness=status.max_staleness,
        target_workers=status.target_workers,
        workers=[_encode_worker(worker) for worker in status.workers],
        num_running=status.num_running,
        num_waiting=status.num_waiting,
        num_trained=status.num_trained,
        learner_wait=status.learner_wait,
        last_checkpoint=status.last_checkpoint,
        message=_text(status.message),
    )


def decode_status(message: control_pb2.StatusResponse) -> RunStatus:
    """The message as a status.

    Raises:
        ValueError: when the run or a worker is in a phase that this version does not know.
    """
    return RunStatus(
        name=message.name,
        phase=_phase(_RUN_PHASES, message.phase),
        step=message.step,
        num_steps=message.num_steps,
        version=message.version,
        max_staleness=message.max_staleness,
        target_workers=message.target_workers,
        workers=tuple(_decode_worker(worker) for worker in message.workers),
        num_running=message.num_running,
        num_waiting=message.num_waiting,
        num_trained=message.num_trained,
        learner_wait=message.learner_wait,
        last_checkpoint=message.last_checkpoint if message.HasField("last_checkpoint") else None,
        message=message.message,
    )


def _encode_worker(worker: WorkerStatus) -> control_pb2.Worker:
    return control_pb2.Worker(
        worker=worker.worker,
        phase=f"WORKER_PHASE_{worker.phase.upper()}",
        version=worker.version,
        num_outstanding=worker.num_outstanding,
        node=_text(worker.node),
        pid=worker.pid,
        is_slow=worker.is_slow,
    )


def _decode_worker(message: control_pb2.Worker) -> WorkerStatus:
    return WorkerStatus(
        worker=message.worker,
        phase=_phase(_WORKER_PHASES, message.phase),
        version=message.version,
        num_outstanding=message.num_outstanding,
        node=message.node,
        pid=message.pid,
        is_slow=message.is_slow,
    )


def _phase(phases: Mapping[int, Phase], number: int) -> Phase:
    if number not in phases:
        raise ValueError(f"phase {number} is not one of {', '.join(phases.values())}")
    return phases[number]


def _text(text: str) -> str:
    return text.encode(errors="replace").decode()
