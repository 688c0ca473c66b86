"""Whether a run kept its promises: the invariants, checked from its ledger, its checkpoints and its processes.

It must not know how a run works; it reads what one left behind, or has written so far. Invariant: it changes nothing,
and what it cannot see it calls not applicable, never held.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.control.checks.attempts import AttemptChecks
from services.control.checks.checkpoints import check_books, check_checkpoints
from services.control.checks.findings import Findings, Verdict
from services.control.checks.history import replay
from services.control.checks.leftovers import check_leftovers
from services.control.checks.processes import ProcessChecks
from services.control.checks.prompts import PromptChecks
from services.control.checks.steps import StepChecks
from services.control.checks.tally import Tally
from services.control.checks.weights import first_difference
from services.control.checks.workers import WorkerChecks
from services.control.ledger_events import Event
from services.control.ledger_file import LedgerFile
from services.control.run_folder import is_held

_MOST_OPEN_PROMPTS = 20
_NEEDS_FOLDER = {"I5": "no checkpoint was looked at", "I8": "no process was looked at"}
_NEEDS_OTHER = "one run cannot show it; compare two with --same-as"


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """What happened in a run.

    Attributes:
        num_events: lines of the ledger; `num_void` of them belong to work that no checkpoint holds.
        num_processes: how often the run was started or resumed by a new process.
        staleness: prompts trained, by staleness in versions.
        open_prompts: the first few prompts that have not ended; `num_open` counts all.
        attempts: groups given to workers, those of void work too.
        requeued: attempts that ended without a group.
        fenced: late replies that were ignored.
    """

    num_events: int
    num_void: int
    num_processes: int
    num_resumes: int
    steps: int
    trained: int
    filtered: int
    failed: int
    num_open: int
    open_prompts: tuple[str, ...]
    staleness: Mapping[int, int]
    staleness_mean: float
    staleness_max: int
    attempts: int
    requeued: int
    fenced: int
    workers_joined: int
    workers_left: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A verdict on each invariant, what happened in numbers, and notes on what was seen of the run."""

    verdicts: tuple[Verdict, ...]
    totals: Totals
    notes: tuple[str, ...] = field(default=())

    @property
    def violations(self) -> dict[str, str]:
        """The first few facts against each invariant that is violated, a line each; empty when all held."""
        return {
            verdict.invariant: "\n".join(verdict.facts) for verdict in self.verdicts if verdict.result == "violated"
        }


def verify_events(events: Iterable[Event], *, live: bool = False) -> Report:
    """Check a ledger alone; the events can be gone through more than once, as a list can.

    Args:
        live: the run goes on, so that its last process need not have ended.
    """
    history = _History(events, live=live)
    for invariant, reason in (_NEEDS_FOLDER | {"I6": _NEEDS_OTHER}).items():
        history.findings.skip(invariant, reason)
    return history.report(())


def verify_run(folder: Path, *, same_as: Path | None = None, leftover_timeout_s: float = 10.0) -> Report:
    """Check all that a run left in its folder, and that it left no process.

    Args:
        same_as: another run whose weights must be the same, bit for bit.
        leftover_timeout_s: how long a process that is just ending is given.

    Raises:
        UserError: there is no ledger that can be verified, a line of it is damaged, or nothing to compare.
        CheckpointError: where checkpoints are compared, and none is whole.
    """
    held_before = is_held(folder)
    ledger = LedgerFile(folder)
    live = held_before or is_held(folder)  # It may have ended, or begun, while the ledger was opened.
    history = _History(ledger, live=live)
    findings, processes = history.findings, history.processes
    was_killed = processes.running is not None
    newest = check_checkpoints(
        folder, history.tally, findings, may_be_untold=None if live or was_killed else processes.resumed_steps
    )
    is_newer = live and newest is not None and newest.state.num_events > history.num_events
    if newest is not None and not is_newer:
        check_books(newest, history.tally, history.prompts, findings)
    if live:
        findings.skip("I8", "the run is live")
    else:
        check_leftovers(history.workers.joined.values(), findings, timeout_s=leftover_timeout_s)
    if same_as is None:
        findings.skip("I6", _NEEDS_OTHER)
    elif difference := first_difference(folder, same_as):
        findings.add("I6", f"{difference}; compared with {same_as}")
    notes = ["the run is live: checked as far as it went"] if live else []
    if ledger.torn_line is not None:
        notes.append(f"line {ledger.torn_line}, the last, was cut off in writing; it is left out")
    return history.report(notes)


class _History:
    """A ledger that every check has seen."""

    def __init__(self, events: Iterable[Event], *, live: bool) -> None:
        self.findings = Findings()
        self.tally = Tally()
        self.workers = WorkerChecks(self.findings)
        self.processes = ProcessChecks(self.findings)
        self.prompts = PromptChecks(self.findings)
        self._steps = StepChecks(self.findings)
        attempts = AttemptChecks(self.findings)
        checks = (self.tally, self.workers, self.processes, self.prompts, self._steps, attempts)
        self.num_events, self._num_void = replay(events, checks, self.findings)
        self.processes.finish(live=live)

    def report(self, notes: Iterable[str]) -> Report:
        return Report(verdicts=self.findings.verdicts(), totals=self._totals(), notes=tuple(notes))

    def _totals(self) -> Totals:
        prompts, facts, staleness = self.tally.prompts, self.tally.facts, self.prompts.staleness
        num_stale = sum(staleness.values())
        return Totals(
            num_events=self.num_events,
            num_void=self._num_void,
            num_processes=facts["run_started"],
            num_resumes=facts["resumed"],
            steps=self._steps.step,
            trained=prompts["trained"],
            filtered=prompts["filtered"],
            failed=prompts["failed"],
            num_open=len(self.prompts.open),
            open_prompts=tuple(self.prompts.open)[:_MOST_OPEN_PROMPTS],
            staleness=dict(sorted(staleness.items())),
            staleness_mean=sum(k * count for k, count in staleness.items()) / max(1, num_stale),
            staleness_max=max(staleness, default=0),
            attempts=facts["dispatched"],
            requeued=facts["requeued"],
            fenced=facts["fenced"],
            workers_joined=facts["joined"],
            workers_left=facts["left"],
        )
