"""The ledger: what became of every prompt, in `events.jsonl`.

It must not know why anything happens. Invariant: each prompt ends exactly once, as trained, filtered or failed; an
event that would break this is a bug and raises at once. After a resume the events of steps that no checkpoint holds are
void: the `resumed` event names the last step that counts.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from services.contracts.records import Json

ENDS = ("trained", "filtered", "failed")
EVENTS_FILE = "events.jsonl"


class Ledger:
    """Appends events and keeps the open prompts.

    Args:
        folder: the run's folder.
        counts: prompts so far by event, when a run resumes.
    """

    def __init__(self, folder: Path, *, counts: Mapping[str, int] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / EVENTS_FILE).open("a", encoding="utf-8")
        self._open: dict[str, str] = {}
        self.counts: Counter[str] = Counter(counts or {})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def num_running(self) -> int:
        """Prompts admitted and not yet scored."""
        return sum(state == "admitted" for state in self._open.values())

    @property
    def num_accepted(self) -> int:
        """Groups scored since the run began, trained ones included."""
        return self.counts["accepted"]

    @property
    def open_prompts(self) -> Mapping[str, str]:
        """Prompts that have not ended, each with its last event."""
        return self._open

    def admit(self, prompt_id: str, *, version: int) -> None:
        assert prompt_id not in self._open, f"prompt {prompt_id} is already under way"
        self._open[prompt_id] = "admitted"
        self._count("admitted", prompt=prompt_id, version=version)

    def accept(self, prompt_id: str) -> None:
        """The group of this prompt is sampled and scored, whole."""
        assert self._open.get(prompt_id) == "admitted", f"prompt {prompt_id} was not admitted"
        self._open[prompt_id] = "accepted"
        self._count("accepted", prompt=prompt_id)

    def end(self, prompt_id: str, how: str, *, reason: str | None = None, step: int | None = None) -> None:
        """The prompt is done: trained at `step`, or filtered or failed for a `reason`."""
        assert how in ENDS, how
        assert prompt_id in self._open, f"prompt {prompt_id} ended already or was never admitted"
        del self._open[prompt_id]
        self._count(how, prompt=prompt_id, reason=reason, step=step)

    def note(self, event: str, **fields: Json) -> None:
        """Write an event that is not about a prompt: published, synced, checkpoint, resumed."""
        line = {"event": event, "time": round(time.time(), 3)}
        line |= {key: value for key, value in fields.items() if value is not None}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def _count(self, event: str, **fields: Json) -> None:
        self.counts[event] += 1
        self.note(event, **fields)
