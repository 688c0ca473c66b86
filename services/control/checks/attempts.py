"""Attempts at prompts: each id is given once, and a group comes only from the attempt under way.

It must not know what a group holds. Invariant: what became of an attempt is a fact that a resume does not undo, while
the prompt that it was for is open again when the work was void.
"""

from services.control.checks.findings import Findings
from services.control.checks.history import Check, Handlers
from services.control.ledger_events import Accepted, Dispatched, Failed, Fenced, Filtered, Requeued, Resumed, RunStarted

_UNDER_WAY = "is under way"
_INTERRUPTED = "was under way when the run resumed"


class AttemptChecks(Check):
    """Fencing, within each process of the run."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._fates: dict[int, tuple[str, int]] = {}
        self._current: dict[str, int] = {}
        self._interrupted: set[str] = set()

    @property
    def valid(self) -> Handlers:
        return {
            RunStarted: self._started,
            Resumed: self._resumed,
            Dispatched: self._dispatched,
            Requeued: self._requeued,
            Accepted: self._accepted,
            Fenced: self._fenced,
            Filtered: self._ended,
            Failed: self._ended,
        }

    @property
    def void(self) -> Handlers:
        return {
            RunStarted: self._started,
            Resumed: self._resumed,
            Dispatched: self._void_dispatched,
            Requeued: self._void_ended,
            Accepted: self._void_ended,
            Fenced: self._fenced,
            Filtered: self._ended,
            Failed: self._ended,
        }

    def _started(self, event: RunStarted, line: int) -> None:
        self._fates.clear()
        self._current.clear()

    def _resumed(self, event: Resumed, line: int) -> None:
        """A prompt that was being sampled may be dispatched again, though nobody requeued it, or its group come yet."""
        self._interrupted = set(self._current)
        for attempt in self._current.values():
            if self._is_under_way(attempt):
                self._fates[attempt] = (_INTERRUPTED, line)

    def _dispatched(self, event: Dispatched, line: int) -> None:
        self._check_id(event, line)
        current = self._current.get(event.prompt)
        if current is not None and event.prompt not in self._interrupted:
            self._findings.add(
                "attempts",
                f"prompt {event.prompt} was dispatched as attempt {event.attempt} at line {line} while attempt "
                f"{current} was under way",
            )
        self._interrupted.discard(event.prompt)
        self._current[event.prompt] = event.attempt
        self._fates[event.attempt] = (_UNDER_WAY, line)

    def _requeued(self, event: Requeued, line: int) -> None:
        if self._current.get(event.prompt) == event.attempt and self._is_under_way(event.attempt):
            del self._current[event.prompt]
        else:
            self._findings.add(
                "attempts",
                f"prompt {event.prompt} was requeued at line {line} from attempt {event.attempt}, which "
                f"{self._fate(event.attempt)}",
            )
        self._fates[event.attempt] = ("was requeued", line)

    def _accepted(self, event: Accepted, line: int) -> None:
        if self._current.get(event.prompt) != event.attempt or not self._is_under_way(event.attempt):
            self._findings.add(
                "attempts",
                f"prompt {event.prompt} was accepted at line {line} from attempt {event.attempt}, which "
                f"{self._fate(event.attempt)}",
            )
        self._current.pop(event.prompt, None)
        self._fates[event.attempt] = ("was accepted", line)

    def _fenced(self, event: Fenced, line: int) -> None:
        how = self._fates.get(event.attempt, ("", 0))[0]
        if how in ("", _UNDER_WAY, "was accepted"):
            self._findings.add(
                "attempts",
                f"attempt {event.attempt} of worker {event.worker} was fenced at line {line}, and it "
                f"{self._fate(event.attempt)}",
            )
        self._fates[event.attempt] = ("was fenced", line)

    def _ended(self, event: Filtered | Failed, line: int) -> None:
        attempt = self._current.pop(event.prompt, None)
        if attempt is not None:
            self._fates[attempt] = (f"had {event.event}", line)

    def _void_dispatched(self, event: Dispatched, line: int) -> None:
        self._check_id(event, line)
        self._fates[event.attempt] = ("was of work that a resume made void", line)

    def _void_ended(self, event: Requeued | Accepted, line: int) -> None:
        self._fates[event.attempt] = (f"was {event.event} in work that a resume made void", line)

    def _check_id(self, event: Dispatched, line: int) -> None:
        if event.attempt in self._fates:
            self._findings.add(
                "attempts",
                f"attempt {event.attempt} was given out again at line {line}, for prompt {event.prompt}; it "
                f"{self._fate(event.attempt)}",
            )

    def _is_under_way(self, attempt: int) -> bool:
        return self._fates.get(attempt, ("", 0))[0] in (_UNDER_WAY, _INTERRUPTED)

    def _fate(self, attempt: int) -> str:
        if attempt not in self._fates:
            return "was never dispatched by this process"
        how, line = self._fates[attempt]
        return f"{how} since line {line}, for another prompt" if how == _UNDER_WAY else f"{how} at line {line}"
