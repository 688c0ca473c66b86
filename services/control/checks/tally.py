"""Counts what happened in a run, for the report and for the comparison with checkpoints.

It must not know what is right. Invariants: prompts are counted in the history that counts alone; attempts, workers and
processes are facts and all counted.
"""

from collections import Counter
from collections.abc import Mapping

from services.control.checks.history import Check, Handlers
from services.control.ledger_events import (
    Accepted,
    Admitted,
    Checkpoint,
    Dispatched,
    Failed,
    Fenced,
    Filtered,
    Joined,
    Left,
    Requeued,
    Resumed,
    RunStarted,
    Trained,
)

PROMPT_EVENTS = ("admitted", "accepted", "trained", "filtered", "failed")


class Tally(Check):
    """Attributes.

    prompts: events of prompts, by name.
    facts: all other events that are counted, by name.
    after_step: `prompts` as it was when the last prompt of a step was trained.
    checkpoints: for each step checkpointed, the line that says so last and `prompts` then; the latest comes last.
    """

    def __init__(self) -> None:
        self.prompts: Counter[str] = Counter()
        self.facts: Counter[str] = Counter()
        self.after_step: dict[int, Mapping[str, int]] = {}
        self.checkpoints: dict[int, tuple[int, Mapping[str, int]]] = {}

    @property
    def valid(self) -> Handlers:
        prompts = dict.fromkeys((Admitted, Accepted, Filtered, Failed), self._prompt)
        return {**self.void, **prompts, Trained: self._trained}

    @property
    def void(self) -> Handlers:
        facts = dict.fromkeys((RunStarted, Resumed, Dispatched, Requeued, Fenced, Joined, Left), self._fact)
        return {**facts, Checkpoint: self._checkpoint}

    def _prompt(self, event: Admitted | Accepted | Filtered | Failed, line: int) -> None:
        self.prompts[event.event] += 1

    def _trained(self, event: Trained, line: int) -> None:
        self.prompts["trained"] += 1
        self.after_step[event.step] = dict(self.prompts)

    def _fact(self, event: RunStarted | Resumed | Dispatched | Requeued | Fenced | Joined | Left, line: int) -> None:
        self.facts[event.event] += 1

    def _checkpoint(self, event: Checkpoint, line: int) -> None:
        self.checkpoints.pop(event.step, None)
        self.checkpoints[event.step] = (line, dict(self.prompts))
