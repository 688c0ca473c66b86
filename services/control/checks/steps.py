"""Learner steps: one after another, each with all its prompts, up to where the run says that it ended.

It must not know prompts. Invariant: a step is judged once it can grow no more, by the batch size of its own time.
"""

from services.control.checks.findings import Findings
from services.control.checks.history import Check, Handlers
from services.control.ledger_events import Resumed, RunEnded, RunStarted, Trained


class StepChecks(Check):
    """Attributes: `step`, the last one trained in the history that counts."""

    def __init__(self, findings: Findings) -> None:
        self.step = 0
        self._findings = findings
        self._num_trained = 0
        self._wanted = 0
        self._last_line = 0
        self._prompts_per_step = 0
        self._num_steps = 0

    @property
    def valid(self) -> Handlers:
        return {
            RunStarted: self._started,
            Resumed: self._resumed,
            Trained: self._trained,
            RunEnded: self._run_ended,
        }

    @property
    def void(self) -> Handlers:
        return {RunStarted: self._started}

    def _started(self, event: RunStarted, line: int) -> None:
        self._prompts_per_step = event.prompts_per_step
        self._num_steps = event.num_steps

    def _trained(self, event: Trained, line: int) -> None:
        if event.step != self.step:
            self._close()
            if event.step != self.step + 1:
                self._findings.add(
                    "steps", f"step {event.step} (line {line}, prompt {event.prompt}) follows step {self.step}"
                )
            self._begin(event.step)
        self._num_trained += 1
        self._last_line = line

    def _resumed(self, event: Resumed, line: int) -> None:
        self._close()
        if event.step != self.step:
            self._findings.add(
                "steps",
                f"line {line} resumes after step {event.step}, and the history that it keeps (up to seq {event.kept}) "
                f"ends with step {self.step}",
            )
            self._begin(event.step)
            self._num_trained = self._wanted

    def _run_ended(self, event: RunEnded, line: int) -> None:
        self._close()
        if event.how == "finished" and self.step != self._num_steps:
            self._findings.add(
                "steps", f"the run is finished at line {line} after step {self.step}, and it has {self._num_steps}"
            )

    def _begin(self, step: int) -> None:
        self.step = step
        self._num_trained = 0
        self._wanted = self._prompts_per_step

    def _close(self) -> None:
        if self._num_trained != self._wanted:
            self._findings.add(
                "steps",
                f"step {self.step} trained {self._num_trained} prompts (the last at line {self._last_line}), "
                f"not {self._wanted}",
            )
        self._num_trained = self._wanted
