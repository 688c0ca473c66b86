"""The processes of a run: each ends with a word, or another one resumes; a lost learner comes back.

It must not know what the run computes. Invariant: a process that was killed is no violation once a resume followed.
"""

from services.contracts.errors import TriremeError
from services.control.checks.findings import Findings
from services.control.checks.history import Check, Handlers
from services.control.ledger_events import (
    Admitted,
    LearnerLost,
    LearnerRestarted,
    Resumed,
    RunEnded,
    RunStarted,
    Trained,
)


class ProcessChecks(Check):
    """I7.

    Attributes:
        running: the last process that started, unless it ended with a word.
        resumed_steps: the steps that were resumed from.
    """

    def __init__(self, findings: Findings) -> None:
        self.running: RunStarted | None = None
        self.resumed_steps: set[int] = set()
        self._findings = findings
        self._started_line = 0
        self._num_started = 0
        self._must_resume = False
        self._lost: tuple[str, int] | None = None
        self._errors = {kind.__name__ for kind in _kinds(TriremeError)}

    @property
    def valid(self) -> Handlers:
        return {
            RunStarted: self._started,
            Resumed: self._resumed,
            Admitted: self._worked,
            Trained: self._worked,
            LearnerLost: self._learner_lost,
            LearnerRestarted: self._learner_restarted,
            RunEnded: self._ended,
        }

    @property
    def void(self) -> Handlers:
        return self.valid

    def finish(self, *, live: bool) -> None:
        """There are no more events; `live`: a process holds the run's folder."""
        if self.running is not None and not live:
            self._findings.add(
                "I7",
                f"the process {self.running.pid} that started at line {self._started_line} ended without a word; "
                "go on with --resume",
            )

    def _started(self, event: RunStarted, line: int) -> None:
        self.running = event
        self._started_line = line
        self._must_resume = self._num_started > 0
        self._num_started += 1
        self._lost = None

    def _resumed(self, event: Resumed, line: int) -> None:
        self.resumed_steps.add(event.step)
        self._must_resume = False

    def _worked(self, event: Admitted | Trained, line: int) -> None:
        if self.running is None:
            self._findings.add("I7", f"prompt {event.prompt} was {event.event} at line {line}, after the run had ended")
        if self._must_resume:
            self._findings.add(
                "I7", f"the process that started at line {self._started_line} worked (line {line}) without a resume"
            )
            self._must_resume = False
        if self._lost is not None and isinstance(event, Trained):
            reason, lost_line = self._lost
            self._findings.add(
                "I7",
                f"prompt {event.prompt} was trained at step {event.step} (line {line}) by a learner that was lost at "
                f"line {lost_line} ({reason}) and not restarted",
            )
            self._lost = None

    def _learner_lost(self, event: LearnerLost, line: int) -> None:
        self._lost = (event.reason, line)

    def _learner_restarted(self, event: LearnerRestarted, line: int) -> None:
        self._lost = None

    def _ended(self, event: RunEnded, line: int) -> None:
        where = f"the run {event.how} at line {line}"
        if self.running is None:
            self._findings.add("I7", f"{where} without a process that had started")
        if event.how in ("finished", "drained"):
            if event.exit_code != 0 or event.error is not None:
                self._findings.add("I7", f"{where} with exit code {event.exit_code} and error {event.error}")
            if self._lost is not None:
                self._findings.add("I7", f"{where} though the learner was lost at line {self._lost[1]}")
        elif event.exit_code == 0:
            self._findings.add("I7", f"{where} with exit code 0")
        if event.how == "failed" and event.error not in self._errors:
            self._findings.add("I7", f"{where} by {event.error}, which is none of the errors that Trireme names")
        self.running = None


def _kinds(kind: type[TriremeError]) -> list[type[TriremeError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _kinds(child))]
