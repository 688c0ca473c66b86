"""What the checks of a run are about, and what they found.

It must not know how anything is checked. Invariant: an invariant that no check spoke of is held; facts are counted
without end and kept up to a few.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

INVARIANTS = {
    "I1": "every prompt is drawn once, trained at most once, and ends once",
    "I2": "every trained prompt was accepted, with a finite reward for each sample",
    "I3": "staleness is what is recorded, and within the bound",
    "I4": "no worker serves before it acknowledged version, checksums and canary",
    "I5": "the newest checkpoint is whole, and the ledger knows it",
    "I6": "the weights equal those of another run, bit for bit",
    "I7": "every process ended with a word, or was resumed",
    "I8": "no process is left behind",
    "attempts": "only the attempt under way is accepted; late replies are fenced",
    "steps": "steps follow one another, each with all its prompts",
    "ledger": "no event is missing, and its counts are those of the checkpoint",
}
_MOST_FACTS = 5

Result = Literal["held", "violated", "not applicable"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What became of one invariant.

    Attributes:
        facts: the first few violations in words, or why it is not applicable.
        num_violations: all of them.
    """

    invariant: str
    title: str
    result: Result
    facts: tuple[str, ...] = ()
    num_violations: int = 0


class Findings:
    """Collects violations by invariant."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._facts: dict[str, list[str]] = {invariant: [] for invariant in INVARIANTS}
        self._skipped: dict[str, str] = {}

    def add(self, invariant: str, fact: str) -> None:
        """A violation; the text names prompt, step, worker or line."""
        self._counts[invariant] += 1
        if len(self._facts[invariant]) < _MOST_FACTS:
            self._facts[invariant].append(fact)

    def skip(self, invariant: str, reason: str) -> None:
        """The invariant cannot be checked here."""
        self._skipped[invariant] = reason

    def verdicts(self) -> tuple[Verdict, ...]:
        return tuple(self._verdict(invariant, title) for invariant, title in INVARIANTS.items())

    def _verdict(self, invariant: str, title: str) -> Verdict:
        count, facts = self._counts[invariant], tuple(self._facts[invariant])
        result: Result = "violated" if count else "not applicable" if invariant in self._skipped else "held"
        if result == "not applicable":
            facts = (self._skipped[invariant],)
        return Verdict(invariant=invariant, title=title, result=result, facts=facts, num_violations=count)
