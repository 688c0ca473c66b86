"""The ledger: what becomes of every prompt, as pure state that tells each change to whoever writes it down.

It must not know files or why anything happens. Invariants: each prompt ends exactly once, as trained, filtered or
failed; an event that would break this is a bug and raises at once; one that cannot be written down has not happened.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from services.contracts.records import Json

ENDS = ("trained", "filtered", "failed")


class Note(Protocol):
    """Writes an event down."""

    def __call__(self, event: str, **fields: Json) -> None: ...


class Ledger:
    """Keeps the open prompts and counts the events.

    Args:
        note: is told of each event.
        counts: prompts so far by event, when a run resumes.
        open_prompts: prompts that had not ended then, each with its last event.
    """

    def __init__(
        self,
        note: Note,
        *,
        counts: Mapping[str, int] | None = None,
        open_prompts: Mapping[str, str] | None = None,
    ) -> None:
        self._note = note
        self._open = dict(open_prompts or {})
        self.counts: Counter[str] = Counter(counts or {})

    @property
    def num_running(self) -> int:
        """Prompts admitted and not yet scored."""
        return sum(state == "admitted" for state in self._open.values())

    @property
    def open_prompts(self) -> Mapping[str, str]:
        """Prompts that have not ended, each with its last event."""
        return self._open

    def admit(self, prompt_id: str, *, position: int, version: int) -> None:
        assert prompt_id not in self._open, f"prompt {prompt_id} is already under way"
        self._count("admitted", prompt=prompt_id, position=position, version=version)
        self._open[prompt_id] = "admitted"

    def accept(self, prompt_id: str, *, lowest_version: int, rewards: list[float], reward_version: str = "") -> None:
        """The group of this prompt is sampled and scored, whole."""
        assert self._open.get(prompt_id) == "admitted", f"prompt {prompt_id} was not admitted"
        self._count(
            "accepted",
            prompt=prompt_id,
            lowest_version=lowest_version,
            rewards=[*rewards],
            reward_version=reward_version,
        )
        self._open[prompt_id] = "accepted"

    def end(self, prompt_id: str, how: str, **fields: Json) -> None:
        """The prompt is done: trained at a `step`, or filtered or failed for a `reason`."""
        assert how in ENDS, how
        assert prompt_id in self._open, f"prompt {prompt_id} ended already or was never admitted"
        self._count(how, prompt=prompt_id, **fields)
        del self._open[prompt_id]

    def _count(self, event: str, **fields: Json) -> None:
        self._note(event, **fields)
        self.counts[event] += 1
