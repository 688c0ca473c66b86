"""A live run and its rollout workers, as an operator sees them.

It must not know who asks. Standard library only; the records are frozen and keyword-only, like those of `records`.
"""

from dataclasses import dataclass
from typing import Literal

RunPhase = Literal["starting", "running", "paused", "draining"]
WorkerPhase = Literal["starting", "loading", "serving", "draining"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerStatus:
    """One rollout worker as an operator sees it.

    Attributes:
        worker: its number, never used twice in a run.
        phase: only a `serving` worker is given requests; a `draining` one ends those it has.
        version: the policy version that it serves; `NOT_SAMPLED` before its first.
        num_outstanding: groups that it is sampling.
        node: name or address of its machine.
        pid: its process there; 0 while it is not known.
        is_slow: it takes far longer for a token than the others, and is given next to nothing meanwhile.
    """

    worker: int
    phase: WorkerPhase
    version: int
    num_outstanding: int
    node: str = ""
    pid: int = 0
    is_slow: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """A live run as an operator sees it.

    Attributes:
        name: the run's name.
        phase: `paused` and `draining` runs admit no prompts.
        step: steps trained.
        num_steps: steps of the whole run.
        version: the policy version that every serving worker has acknowledged.
        max_staleness: bound on the staleness of what is trained, in versions.
        target_workers: rollout workers that the run tries to have.
        workers: those that it has.
        num_running: prompts admitted and not yet scored.
        num_waiting: scored groups that wait for the learner.
        num_trained: prompts trained.
        learner_wait: share of the last step's time in which the learner waited for groups.
        last_checkpoint: step of the newest checkpoint; None where there is none.
        message: what the run waits for, or was last told, in words.
    """

    name: str
    phase: RunPhase
    step: int
    num_steps: int
    version: int
    max_staleness: int
    target_workers: int
    workers: tuple[WorkerStatus, ...] = ()
    num_running: int = 0
    num_waiting: int = 0
    num_trained: int = 0
    learner_wait: float = 0.0
    last_checkpoint: int | None = None
    message: str = ""
