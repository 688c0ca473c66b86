"""A judging job: items that a judge is asked about, each once, in a folder in which the job can be gone on with.

It must not know what is asked. Invariants: a result is in the log before its item counts as done; an item that is done
is not asked about again, also after a restart; results of different work never stand in one folder.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import Field

from reward_server.judges.faults import JudgeFault
from reward_server.judges.judge import Counts, Judge
from services.contracts.errors import TriremeError, UserError
from services.contracts.records import FailureCode, Json
from services.contracts.settings import Section
from services.control.candidates import PromptValue
from services.control.event_log import EventLog
from services.control.job_log import open_job_log
from services.control.worklist import work_off

Result = Mapping[str, Any]  # Any: JSON that the job's own work made
Tell = Callable[[str], None]


class JobConfig(Section):
    """The job itself."""

    dir: Path
    """Folder that receives everything the job writes; a job that was stopped goes on where it stopped."""
    seed: int = 0
    """Seed of what is drawn at random."""
    max_failed: int = Field(default=100, ge=0)
    """Items that may stay without a verdict, such as for a judge that takes longer than judge.timeout_s each of
    judge.max_attempts times, before the job stops; when it goes on they are asked about again."""


class Item(Protocol):
    """Something to ask about."""

    @property
    def id(self) -> str: ...


ItemType = TypeVar("ItemType", bound=Item)


@dataclass(slots=True)
class Job:
    """What was found so far, by item, and what it took."""

    config: JobConfig
    log: EventLog
    results: dict[str, Result] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    num_failed: int = 0
    num_timeouts_in_a_row: int = 0

    async def run(
        self,
        items: Sequence[ItemType],
        work: Callable[[ItemType], Awaitable[dict[str, Json]]],
        *,
        judge: Judge,
        tell: Tell,
    ) -> None:
        """Do what is not done yet; `tell` hears every few seconds how far it is.

        Raises:
            JudgeFault: the judge is away, its budget is spent, or it answers none of as many items as are asked about
                at once.
            TriremeError: more than `max_failed` items failed.
        """
        try:
            await work_off(
                [item for item in items if item.id not in self.results],
                lambda item: self._do(item.id, work(item), judge.config.max_in_flight),
                at_once=judge.config.max_in_flight,
                tell=lambda: tell(f"{len(self.results)} of {len(items)} judged, {self.num_failed} failed"),
            )
        finally:
            self.log.note("asked", **asdict(judge.counts))
            self.counts += judge.counts

    async def _do(self, item_id: str, work: Awaitable[dict[str, Json]], max_timeouts_in_a_row: int) -> None:
        try:
            result = await work
        except JudgeFault as fault:
            if fault.concerns_all:
                raise
            self._fail(item_id, fault)
            self.num_timeouts_in_a_row += fault.failure.code is FailureCode.TIMEOUT
            if self.num_timeouts_in_a_row > max_timeouts_in_a_row:
                raise  # An endpoint that hangs would otherwise be waited for until `max_failed` is reached.
        else:
            self.num_timeouts_in_a_row = 0
            self.log.note("judged", item=item_id, result=result)
            self.results[item_id] = result

    def _fail(self, item_id: str, fault: JudgeFault) -> None:
        self.log.note("failed", item=item_id, message=str(fault))
        self.num_failed += 1
        if self.num_failed > self.config.max_failed:
            raise TriremeError(
                f"{self.num_failed} items have no verdict, and run.max_failed is {self.config.max_failed}; the last: "
                f"{fault}"
            )


@contextmanager
def open_job(config: JobConfig, *, work: str) -> Iterator[Job]:
    """Hold the job's folder, and read what is done there.

    Args:
        work: what is done, with everything that shapes the results.

    Raises:
        UserError: another process holds the folder, or a run, another job or results of other work are in it.
    """
    with open_job_log(config.dir, "work", work) as (log, events):
        job = Job(config=config, log=log)
        if (before := events[0]["work"]) != work:
            raise UserError(
                f"{config.dir} holds {before}, and this would add {work}: model, question or settings differ; set "
                "run.dir to a new folder"
            )
        for event in events:
            if event["event"] == "judged":
                job.results[event["item"]] = event["result"]
            if event["event"] == "asked":
                job.counts += Counts(**{name: event[name] for name in asdict(job.counts)})
        yield job


def preference(prompt: PromptValue, chosen: str, rejected: str, margin: float, judge: str) -> dict[str, Json]:
    """A row of preference data, as reward-model and preference training read it."""
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "margin": margin, "judge": judge}
