"""A run's `events.jsonl`, read back event by event.

It must not know what the events must obey. Invariants: the file can be gone through any number of times and gives the
same events each time, though a live run may write on; a last line that was torn in writing is left out and said.
"""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from services.contracts.errors import UserError
from services.control.event_log import EVENTS_FILE
from services.control.ledger_events import Event, RunStarted, parse_event


class LedgerFile:
    """The events that the ledger of a run's folder has now.

    Attributes:
        torn_line: number of the last line where it was cut off in writing; known once the events were gone through.

    Raises:
        UserError: there is no ledger, or one of a version that did not write down what can be verified.
    """

    def __init__(self, folder: Path) -> None:
        self.torn_line: int | None = None
        self._path = folder / EVENTS_FILE
        if not self._path.is_file():
            raise UserError(f"{self._path} does not exist; give the folder of a run of `trireme train` (run.dir)")
        self._size = self._path.stat().st_size
        first = next(iter(self), None)
        if first is None:
            raise UserError(f"{self._path} has no event yet; wait until the run has started")
        if not isinstance(first, RunStarted):
            raise UserError(self._too_old())

    def __iter__(self) -> Iterator[Event]:
        """Raises `UserError` naming a damaged line."""
        left = self._size
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                text = line[:left]  # What was written since is not looked at.
                left -= len(text)
                if not text:
                    return
                try:
                    event = parse_event(text)
                except UserError as error:
                    if not text.endswith(b"\n"):
                        self.torn_line = number
                        return
                    raise UserError(self._damage(number, text, error)) from error
                yield event

    def _damage(self, number: int, line: bytes, error: UserError) -> str:
        if number == 1 and b"run_started" not in line:
            return self._too_old()
        text = line[:80].decode(errors="replace").strip()
        return f"line {number} of {self._path} is damaged ({error}): {text!r}; put the file back from a copy"

    def _too_old(self) -> str:
        return (
            f"{self._path} does not begin with run_started, as ledgers of Trireme {version('trireme-rlhf')} do: an "
            "older version wrote it, and not all that can be verified; start the run anew to have a ledger that can"
        )
