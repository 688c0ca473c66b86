"""What happens to workers and attempts, written into the run's log.

It must not know what follows from an event. Invariants: an accepted group names the attempt that gave it; the attempts
of prompts that the ledger does not keep, such as those of an evaluation, leave no trace.
"""

from collections.abc import Callable

from rollout_workers.dispatch import Assignment
from rollout_workers.fleet import LaunchedWorker
from services.contracts.records import Json, Publication, SyncReceipt
from services.control.ledger import Note


class RunEvents:
    """Implements `PoolWatcher` and `FleetWatcher`.

    Args:
        write: puts an event into the log.

    Attributes:
        is_open: whether the ledger of the run keeps a prompt.
    """

    def __init__(self, write: Note) -> None:
        self._write = write
        self._attempts: dict[str, int] = {}
        self.is_open: Callable[[str], bool] = lambda prompt_id: False

    def note(self, event: str, **fields: Json) -> None:
        """Write an event of the run or of its ledger."""
        if event == "accepted":
            fields["attempt"] = self._attempts.pop(str(fields["prompt"]))
        self._write(event, **fields)

    def on_attempt(self, event: str, prompt_id: str, assignment: Assignment, detail: int | str | None) -> None:
        if not self.is_open(prompt_id):
            return
        attempt: dict[str, Json] = {"prompt": prompt_id, "attempt": assignment.attempt, "worker": assignment.worker}
        if event == "dispatched":
            self._attempts[prompt_id] = assignment.attempt
            self._write(event, **attempt, version=detail)
        elif event == "requeued":
            self._write(event, **attempt, reason=detail)
        else:
            self._write(event, **attempt)

    def on_synced(self, receipt: SyncReceipt, publication: Publication) -> None:
        self._write(
            "synced",
            worker=receipt.worker,
            version=receipt.version,
            generation=receipt.generation,
            checksums_agree=True,  # A worker gives no receipt otherwise.
            canary=receipt.canary_error,
            tolerance=publication.manifest.canary.tolerance,
            fetch_s=round(receipt.fetch_s, 4),
            load_s=round(receipt.load_s, 4),
            verify_s=round(receipt.verify_s, 4),
            stall_s=round(receipt.stall_s, 4),
        )

    def on_joined(self, number: int, worker: LaunchedWorker) -> None:
        self._write("joined", worker=number, node=worker.node, pid=worker.pid)

    def on_left(self, number: int, reason: str) -> None:
        self._write("left", worker=number, reason=reason)
