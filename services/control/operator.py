"""What an operator may ask of a live run, carried out on whichever session is under way.

It must not know how requests arrive. Invariants: whatever is asked takes effect between two steps; a request whose
caller is gone goes on all the same; a run that pauses or drains does so across a restart of its learner.
"""

import asyncio
from pathlib import Path

from rollout_workers.fleet import Fleet
from services.contracts.errors import CheckpointError, DeadlineExceeded
from services.contracts.run_status import RunPhase, RunStatus
from services.control.config import RunConfig
from services.control.ledger import Note
from services.control.session import Session


class Operator:
    """Implements `RunControl`.

    Args:
        fleet: the rollout workers.
        note: writes down what was asked.

    Attributes:
        message: what the run waits for, or was last told.
    """

    def __init__(self, config: RunConfig, fleet: Fleet, note: Note) -> None:
        self._config = config
        self._fleet = fleet
        self._note = note
        self._session: Session | None = None
        self._phase: RunPhase = "running"
        self._saving: set[asyncio.Future[Path]] = set()
        self.message = ""

    def take_over(self, session: Session) -> None:
        """Carry out requests on this session from now on."""
        self._session = session
        self._turn(self._phase)

    def status(self) -> RunStatus:
        session, train = self._session, self._config.train
        step = session.last_step if session else None
        return RunStatus(
            name=self._config.run.name,
            phase=self._phase if session else "starting",
            step=session.machine.trained_steps if session else 0,
            num_steps=train.num_steps,
            version=session.machine.version if session else 0,
            max_staleness=train.max_staleness,
            target_workers=self._fleet.target,
            workers=self._fleet.status(),
            num_running=session.machine.num_running if session else 0,
            num_waiting=session.machine.num_waiting if session else 0,
            num_trained=session.num_trained if session else 0,
            learner_wait=step.learner_wait if step else 0.0,
            last_checkpoint=(session.saved_step or None) if session else None,
            message="; ".join(filter(None, (self.message, self._fleet.trouble))),
        )

    @property
    def is_draining(self) -> bool:
        return self._phase == "draining"

    async def scale(self, num_workers: int) -> None:
        self._fleet.scale(num_workers)
        self._note("scaled", target=num_workers, by="operator")
        self.message = f"asked for {num_workers} rollout workers"

    async def pause(self, *, reason: str = "") -> None:
        """Implements `RunControl.pause`; a run that pauses itself gives its reason."""
        self._note("paused", **({"reason": reason} if reason else {}))
        self._turn("paused", reason)

    async def resume(self) -> None:
        self._note("resumed_by_operator")
        self._turn("running")

    async def drain(self) -> None:
        self._note("draining")
        self._turn("draining")

    async def checkpoint(self, *, timeout_s: float) -> Path:
        session = self._session
        if session is None:
            raise CheckpointError("the run has not started training yet, so there is nothing to save; ask again later")
        saving = asyncio.ensure_future(_checkpoint(session))
        self._saving.add(saving)
        saving.add_done_callback(self._saved)
        try:
            return await asyncio.wait_for(asyncio.shield(saving), timeout_s)
        except TimeoutError as error:
            raise DeadlineExceeded(
                waited_for="a checkpoint between two steps",
                waited_s=timeout_s,
                advice="it is still going to be written; see `trireme status` for the newest",
            ) from error

    def _saved(self, saving: asyncio.Future[Path]) -> None:
        """Whoever asked may have gone, so that only the status can tell of a failure."""
        self._saving.discard(saving)
        if not saving.cancelled() and (error := saving.exception()):
            self.message = f"the checkpoint that was asked for failed: {error}"

    def _turn(self, phase: RunPhase, reason: str = "") -> None:
        self._phase = phase
        paused = f"paused by an alarm, {reason}" if reason else "paused"
        messages = {"paused": f"{paused}; `trireme resume` lets it go on", "draining": "ending what is under way"}
        self.message = messages.get(phase, "")
        if self._session is not None:
            self._session.machine.phase = phase
            self._session.controller.wake()


async def _checkpoint(session: Session) -> Path:
    async with session.controller.learner_is_free:
        if session.machine.trained_steps == 0:
            raise CheckpointError("the run has not made a step yet, so there is nothing to save; ask again later")
        if not session.controller.learner_is_sound:
            raise CheckpointError("the learner failed in the middle of a step, which cannot be saved; resume the run")
        return await session.checkpoint()
