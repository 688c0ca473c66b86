"""A run without tensors that writes a true ledger: what a test, or chance, makes it do, it does as a run would.

It must not know the checks. Invariant: whatever order its methods are called in, the history it writes is valid.
"""

from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Literal

from services.control.ledger_events import (
    Accepted,
    Admitted,
    Checkpoint,
    Dispatched,
    Event,
    Failed,
    Fenced,
    Filtered,
    Joined,
    LearnerLost,
    LearnerRestarted,
    Left,
    Other,
    Published,
    Requeued,
    Resumed,
    RunEnded,
    RunStarted,
    Synced,
    Trained,
)

PROMPTS_PER_STEP = 2
SAMPLES_PER_PROMPT = 2
MAX_STALENESS = 1


@dataclass(kw_only=True)
class Restorable:
    """What a checkpoint holds: the step, the data position, prompts that wait and groups (prompt, lowest version)."""

    step: int = 0
    position: int = 0
    waiting: list[str] = field(default_factory=list)
    groups: list[tuple[str, int]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(kw_only=True)
class Attempt:
    """A prompt that a worker is sampling."""

    prompt: str
    worker: int
    version: int


class TinyLedger:
    """Starts with one worker that serves version 0."""

    def __init__(self, *, num_steps: int = 3) -> None:
        self.events: list[Event] = []
        self.state = Restorable()
        self.workers: dict[int, int | None] = {}
        self.attempts: dict[int, Attempt] = {}
        self.ended: list[tuple[int, int]] = []
        self.committed: list[tuple[int, Restorable]] = []
        self._num_steps = num_steps
        self._generation = 0
        self._num_attempts = 0
        self._num_workers = 0
        self.start()

    def start(self) -> None:
        self._add(
            RunStarted(
                **self._next(),
                pid=1,
                max_staleness=MAX_STALENESS,
                prompts_per_step=PROMPTS_PER_STEP,
                num_steps=self._num_steps,
                samples_per_prompt=SAMPLES_PER_PROMPT,
                seed=0,
            )
        )
        if self.committed:
            self._restore()
        self.publish()
        self.sync(self.join())

    def join(self) -> int:
        worker, self._num_workers = self._num_workers, self._num_workers + 1
        self._add(Joined(**self._next(), worker=worker, node="elsewhere", pid=100 + worker))
        self.workers[worker] = None
        return worker

    def publish(self) -> None:
        self._add(Published(**self._next(), version=self.state.step, generation=self._generation))

    def sync(self, worker: int) -> None:
        self._add(
            Synced(
                **self._next(),
                worker=worker,
                version=self.state.step,
                generation=self._generation,
                checksums_agree=True,
                canary=1e-6,
                tolerance=1e-3,
            )
        )
        self.workers[worker] = self.state.step

    def leave(self, worker: int) -> None:
        self._add(Left(**self._next(), worker=worker, reason="died"))
        del self.workers[worker]
        for attempt in [number for number, attempt in self.attempts.items() if attempt.worker == worker]:
            self.requeue(attempt)

    def admit(self) -> None:
        """Draw a prompt, unless those that are open suffice for all steps that are left."""
        num_open = len(self.state.waiting) + len(self.attempts) + len(self.state.groups)
        if self.state.step * PROMPTS_PER_STEP + num_open >= self._num_steps * PROMPTS_PER_STEP:
            return
        prompt = f"0-{self.state.position}"
        self._count(Admitted(**self._next(), prompt=prompt, position=self.state.position, version=self.state.step))
        self.state.position += 1
        self.state.waiting.append(prompt)

    def dispatch(self, worker: int) -> None:
        """The oldest prompt that waits, if it can be trained before the worker's version is too old."""
        version = self.workers[worker]
        if version is None or not self.state.waiting:
            return
        ahead = len(self.state.groups) + len(self.attempts) + self.state.step * PROMPTS_PER_STEP
        if ahead >= (MAX_STALENESS + version + 1) * PROMPTS_PER_STEP:
            return
        prompt, attempt = self.state.waiting.pop(0), self._num_attempts
        self._num_attempts += 1
        self._add(Dispatched(**self._next(), prompt=prompt, attempt=attempt, worker=worker, version=version))
        self.attempts[attempt] = Attempt(prompt=prompt, worker=worker, version=version)

    def requeue(self, number: int) -> None:
        attempt = self._end(number)
        self._add(Requeued(**self._next(), prompt=attempt.prompt, attempt=number, worker=attempt.worker, reason="lost"))
        self.state.waiting.append(attempt.prompt)

    def fence(self) -> None:
        if self.ended:
            attempt, worker = self.ended.pop()
            self._add(Fenced(**self._next(), attempt=attempt, worker=worker))

    def accept(self, number: int) -> None:
        attempt = self.attempts.pop(number)
        self._count(
            Accepted(
                **self._next(),
                prompt=attempt.prompt,
                attempt=number,
                lowest_version=attempt.version,
                rewards=(1.0, 1.0),
            )
        )
        self.state.groups.append((attempt.prompt, attempt.version))

    def fail(self, number: int) -> None:
        self._count(Failed(**self._next(), prompt=self._end(number).prompt, reason="refused"))

    def filter(self) -> None:
        if self.state.groups:
            prompt, _ = self.state.groups.pop()
            self._count(Filtered(**self._next(), prompt=prompt, reason="same rewards"))

    def train(self) -> bool:
        """One step and its publication, if there are groups for it and nothing under way would grow too old."""
        self.state.groups.sort(key=lambda group: group[1])
        chosen, rest = self.state.groups[:PROMPTS_PER_STEP], self.state.groups[PROMPTS_PER_STEP:]
        versions = [version for _, version in rest] + [attempt.version for attempt in self.attempts.values()]
        step = self.state.step + 1
        is_last = self.state.step == self._num_steps
        if is_last or len(chosen) < PROMPTS_PER_STEP or any(step - version > MAX_STALENESS for version in versions):
            return False
        for prompt, version in chosen:
            self._count(Trained(**self._next(), prompt=prompt, step=step, staleness=step - 1 - version))
        self.state.groups = rest
        self.state.step = step
        self.publish()
        return True

    def checkpoint(self) -> None:
        held = deepcopy(self.state)
        held.waiting += [attempt.prompt for attempt in self.attempts.values()]
        self.committed.append((len(self.events) - 1, held))
        self._add(Checkpoint(**self._next(), step=self.state.step))

    def note(self, event: str) -> None:
        self._add(Other(**self._next(), event=event))

    def restart_learner(self) -> None:
        """All ranks of the learner start anew; the workers live on and pull what it has now."""
        if self.committed:
            self._add(LearnerLost(**self._next(), reason="rank 1 died"))
            self._add(LearnerRestarted(**self._next(), step=self.committed[-1][1].step))
            self.ended += [(number, attempt.worker) for number, attempt in self.attempts.items()]
            self._restore()
            self.publish()
            for worker in self.workers:
                self.sync(worker)

    def kill_and_resume(self, *, num_fewer_steps: int = 0) -> None:
        """With fewer steps than before, but not than the checkpoint has made, a run may not train all it has open."""
        if self.committed:
            self._num_steps = max(1, self.committed[-1][1].step, self._num_steps - num_fewer_steps)
            self.workers.clear()
            self.ended.clear()
            self._num_attempts = 0
            self.start()

    def finish(self) -> None:
        """Train what is missing, one group at a time."""
        while self.state.step < self._num_steps:
            self.train_one_step()
        self.checkpoint()
        self.end("finished")

    def train_one_step(self) -> None:
        for number in list(self.attempts):
            self.accept(number)
        worker = self.join()
        self.sync(worker)
        while not self.train():
            self.admit()
            self.dispatch(worker)
            self.accept(max(self.attempts))

    def end(
        self,
        how: Literal["finished", "interrupted", "drained", "failed"],
        *,
        error: str | None = None,
        exit_code: int = 0,
    ) -> None:
        self._add(RunEnded(**self._next(), how=how, error=error, exit_code=exit_code))

    def _restore(self) -> None:
        kept, held = self.committed[-1]
        self._add(Resumed(**self._next(), step=held.step, kept=kept))
        self.state = deepcopy(held)
        self.attempts.clear()
        self._generation += 1

    def _end(self, number: int) -> Attempt:
        attempt = self.attempts.pop(number)
        self.ended.append((number, attempt.worker))
        return attempt

    def _count(self, event: Event) -> None:
        self.state.counts[event.event] = self.state.counts.get(event.event, 0) + 1
        self._add(event)

    def _add(self, event: Event) -> None:
        self.events.append(event)

    def _next(self) -> dict[str, int]:
        return {"seq": len(self.events), "time": len(self.events)}


def whole_run() -> TinyLedger:
    """A run of three steps in which every kind of event happens once at least."""
    run = TinyLedger()
    second = run.join()
    run.sync(second)
    for _ in range(4):
        run.admit()
    for worker in (0, 0, second, second):
        run.dispatch(worker)
    run.accept(0)
    run.leave(second)
    run.fence()
    run.fail(1)
    run.dispatch(0)
    run.accept(4)
    run.dispatch(0)
    run.train()
    run.checkpoint()
    run.accept(5)
    run.filter()
    run.note("paused")
    run.restart_learner()
    run.train_one_step()
    run.kill_and_resume()
    run.train_one_step()
    run.checkpoint()
    run.finish()
    return run


def renumbered(events: list[Event]) -> list[Event]:
    """Events that were dropped or doubled, with `seq` rising by one again and resumes that keep the same events."""
    places = {event.seq: place for place, event in enumerate(events)}
    renewed: list[Event] = []
    for place, event in enumerate(events):
        if isinstance(event, Resumed):
            kept = max((new for old, new in places.items() if old <= event.kept), default=-1)
            renewed.append(replace(event, seq=place, kept=kept))
        else:
            renewed.append(replace(event, seq=place))
    return renewed
