"""Rollout workers: each serves only what it acknowledged, from its first sync until it leaves.

It must not know prompts beyond their names. Invariant: facts about workers are never void, so all of the ledger counts.
"""

from dataclasses import dataclass

from services.control.checks.findings import Findings
from services.control.checks.history import Check, Handlers
from services.control.ledger_events import Dispatched, Joined, Left, Published, Resumed, RunStarted, Synced


@dataclass(kw_only=True, slots=True)
class _Worker:
    """What a worker that joined serves; None before its first weights."""

    joined_line: int
    version: int | None = None
    why_not: str = ""


class WorkerChecks(Check):
    """I4.

    Attributes:
        joined: the last worker that joined under each node and process id, of the whole run.
    """

    def __init__(self, findings: Findings) -> None:
        self.joined: dict[tuple[str, int], Joined] = {}
        self._findings = findings
        self._workers: dict[int, _Worker] = {}
        self._left: dict[int, int] = {}
        self._published: set[tuple[int, int]] = set()

    @property
    def valid(self) -> Handlers:
        return {
            RunStarted: self._started,
            Resumed: self._resumed,
            Published: self._publish,
            Joined: self._join,
            Synced: self._synced,
            Dispatched: self._dispatched,
            Left: self._leave,
        }

    @property
    def void(self) -> Handlers:
        return self.valid

    def _started(self, event: RunStarted, line: int) -> None:
        """The workers of the process before are none of this one's."""
        self._workers.clear()
        self._left.clear()
        self._published.clear()

    def _resumed(self, event: Resumed, line: int) -> None:
        for worker in self._workers.values():
            if worker.version is not None and worker.version > event.step:
                worker.why_not = f"its version {worker.version} is of work that line {line} made void"
                worker.version = None

    def _publish(self, event: Published, line: int) -> None:
        self._published.add((event.version, event.generation))

    def _join(self, event: Joined, line: int) -> None:
        if event.worker in self._workers:
            before = self._workers[event.worker].joined_line
            self._findings.add(
                "I4", f"worker {event.worker} joined at line {line}, and at line {before} without leaving"
            )
        self._workers[event.worker] = _Worker(joined_line=line, why_not="it had acknowledged no weights")
        self._left.pop(event.worker, None)
        if event.pid:
            self.joined[event.node, event.pid] = event

    def _synced(self, event: Synced, line: int) -> None:
        where = f"worker {event.worker} acknowledged version {event.version} at line {line}"
        faults = []
        if event.worker not in self._workers:
            faults.append(self._absence(event.worker))
        if (event.version, event.generation) not in self._published:
            faults.append(f"generation {event.generation} of it was never published by this process")
        if not event.checksums_agree:
            faults.append("its checksums did not agree")
        if event.canary is None or not event.canary <= event.tolerance:
            faults.append(f"its canary was {event.canary}, and {event.tolerance} is the most allowed")
        for fault in faults:
            self._findings.add("I4", f"{where}; {fault}")
        if event.worker in self._workers:
            self._workers[event.worker].version = event.version

    def _dispatched(self, event: Dispatched, line: int) -> None:
        where = f"worker {event.worker} was given prompt {event.prompt} at line {line}"
        worker = self._workers.get(event.worker)
        if worker is None:
            self._findings.add("I4", f"{where}; {self._absence(event.worker)}")
        elif worker.version is None:
            self._findings.add("I4", f"{where}; {worker.why_not}")
        elif worker.version != event.version:
            self._findings.add(
                "I4", f"{where} for version {event.version}; it last acknowledged version {worker.version}"
            )

    def _leave(self, event: Left, line: int) -> None:
        self._workers.pop(event.worker, None)
        self._left[event.worker] = line

    def _absence(self, worker: int) -> str:
        line = self._left.get(worker)
        return "it had not joined" if line is None else f"it had left at line {line}"
