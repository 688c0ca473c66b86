"""Whether dynamic sampling kept its rule in a run: checked from the ledger alone.

It must not know how it is decided. Invariant: a step filters no more than it may, and trains a group whose rewards are
all the same only once it has filtered as many as it may.
"""

from collections import Counter
from collections.abc import Sequence

from services.control.checks.findings import Findings
from services.control.checks.history import Check, Handlers, replay
from services.control.ledger_events import Accepted, Event, Filtered, Trained


def check_filtering(events: Sequence[Event], most: int) -> list[str]:
    """What is wrong, in words; `most` is how many prompts a step may filter."""
    seen = _Filtering()
    replay(events, [seen], Findings())
    over = {step: count for step, count in seen.filtered.items() if count > most}
    wrong = [f"step {step} filtered {count} prompts, and {most} may be" for step, count in over.items()]
    early = [step for step in seen.flat_steps if most and seen.filtered[step] < most]
    return wrong + [f"step {step} trained a flat group with {seen.filtered[step]} of {most} filtered" for step in early]


class _Filtering(Check):
    """Attributes: `filtered`, prompts by step; `flat_steps`, steps that trained a group without difference."""

    def __init__(self) -> None:
        self.filtered: Counter[int] = Counter()
        self.flat_steps: set[int] = set()
        self._flat: set[str] = set()

    @property
    def valid(self) -> Handlers:
        return {Accepted: self._accepted, Filtered: self._filter, Trained: self._trained}

    @property
    def void(self) -> Handlers:
        return {}

    def _accepted(self, event: Accepted, line: int) -> None:
        if len(set(event.rewards)) == 1:
            self._flat.add(event.prompt)

    def _filter(self, event: Filtered, line: int) -> None:
        self.filtered[event.step] += 1

    def _trained(self, event: Trained, line: int) -> None:
        if event.prompt in self._flat:
            self.flat_steps.add(event.step)
