"""A true history keeps every promise; each way of breaking one is found, under its name, with the culprit."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.control.ledger_events import (
    Accepted,
    Admitted,
    Dispatched,
    Event,
    Failed,
    Fenced,
    Filtered,
    Joined,
    LearnerLost,
    LearnerRestarted,
    Left,
    Requeued,
    Resumed,
    RunEnded,
    RunStarted,
    Synced,
    Trained,
)
from services.control.verification import verify_events
from tests.control.tiny_ledger import TinyLedger, renumbered, whole_run

Kind = TypeVar("Kind", bound=Event)
Mutation = Callable[[list[Event]], list[Event]]


def place_of(events: Sequence[Event], kind: type, index: int = 0) -> int:
    return [place for place, event in enumerate(events) if isinstance(event, kind)][index]


def change(kind: type, index: int = 0, **fields: Any) -> Mutation:  # Any: fields of any event
    """One event of a kind says something else."""

    def mutate(events: list[Event]) -> list[Event]:
        place = place_of(events, kind, index)
        return [*events[:place], replace(events[place], **fields), *events[place + 1 :]]

    return mutate


def drop(kind: type, index: int = 0) -> Mutation:
    def mutate(events: list[Event]) -> list[Event]:
        place = place_of(events, kind, index)
        return renumbered([*events[:place], *events[place + 1 :]])

    return mutate


def double(kind: type, index: int = 0) -> Mutation:
    def mutate(events: list[Event]) -> list[Event]:
        place = place_of(events, kind, index)
        return renumbered([*events[: place + 1], *events[place:]])

    return mutate


def insert(event: Event, *, after: type, index: int = 0) -> Mutation:
    def mutate(events: list[Event]) -> list[Event]:
        place = place_of(events, after, index)
        return renumbered([*events[: place + 1], replace(event, seq=events[place].seq), *events[place + 1 :]])

    return mutate


def cut(kind: type, index: int) -> Mutation:
    """The ledger ends before that event."""
    return lambda events: events[: place_of(events, kind, index)]


PLACE: dict[str, Any] = {"seq": 0, "time": 0}  # Any: fields of any event; `insert` puts them right

# The last trained events are those of prompts 0-5 and 0-6 in step 3, accepted from attempts 2 and 3 of worker 5.
MUTATIONS: dict[str, tuple[Mutation, str, str]] = {
    "trained twice": (double(Trained, -1), "I1", r"prompt 0-6 was trained at step 3 .*before, at line 72"),
    "ended after training": (
        insert(Failed(**PLACE, prompt="0-5"), after=Trained, index=-1),
        "I1",
        r"prompt 0-5 failed at line 73; it was trained at step 3 before, at line 71",
    ),
    "trained after it failed": (change(Trained, 0, prompt="0-1"), "I1", r"prompt 0-1 was trained .* it had failed"),
    "filtered without being admitted": (
        insert(Filtered(**PLACE, prompt="9-9"), after=Trained, index=-1),
        "I1",
        r"prompt 9-9 filtered at line 73; it was never admitted",
    ),
    "filtered though it could teach": (
        lambda events: insert(Filtered(**PLACE, prompt="0-6"), after=Accepted, index=-1)(
            change(Accepted, -1, rewards=(0.0, 1.0))(events)
        ),
        "I1",
        r"prompt 0-6 was filtered at line 71 with the rewards \[0.0, 1.0\]",
    ),
    "admitted twice": (double(Admitted, -1), "I1", r"prompt 0-6 was admitted again at line 67; it was still open"),
    "a prompt skipped": (change(Admitted, -1, position=8), "I1", r"prompt 0-6 .* position 8 .* 6 was next"),
    "never admitted": (drop(Admitted, 0), "I1", r"prompt 0-0 was dispatched at line 10; it was never admitted"),
    "dispatched after it was trained": (
        insert(Dispatched(**PLACE, prompt="0-5", attempt=50, worker=5, version=2), after=Trained, index=-1),
        "I1",
        r"prompt 0-5 was dispatched at line 73; it was trained",
    ),
    "lost before it was accepted": (
        insert(Admitted(**PLACE, prompt="0-7", position=7, version=2), after=Trained, index=-1),
        "I1",
        r"prompt 0-7 was lost: admitted at line 73, never accepted, and the run is finished at line 76",
    ),
    "lost after it was accepted": (
        lambda events: insert(Admitted(**PLACE, prompt="0-7", position=7, version=2), after=Dispatched, index=-1)(
            change(Accepted, -1, prompt="0-7")(events)
        ),
        "I1",
        r"prompt 0-7 was lost: admitted at line 70, accepted but never trained, and the run is finished at line 76",
    ),
    "accepted twice": (double(Accepted, -1), "I1", r"prompt 0-6 \(line 71\) was accepted twice"),
    "trained without being accepted": (drop(Accepted, -1), "I2", r"prompt 0-6 was trained at step 3 .* without"),
    "a reward that is no number": (
        change(Accepted, -1, rewards=(1.0, float("nan"))),
        "I2",
        r"prompt 0-6 \(line 70\) .* not finite: nan",
    ),
    "a reward missing": (change(Accepted, -1, rewards=(1.0, None)), "I2", r"prompt 0-6 .* not finite: None"),
    "too few rewards": (change(Accepted, -1, rewards=(1.0,)), "I2", r"prompt 0-6 .* 1 rewards for 2 samples"),
    "wrong staleness": (change(Trained, -1, staleness=1), "I3", r"prompt 0-6 .* staleness 1 .* makes it 0"),
    "too stale": (change(Accepted, -1, lowest_version=0), "I3", r"prompt 0-6 .* staleness 2; the bound is 0 to 1"),
    "from the future": (change(Accepted, -1, lowest_version=3), "I3", r"prompt 0-6 .* version 3 .* was 2"),
    "served before its first weights": (
        drop(Synced, -1),
        "I4",
        r"worker 5 was given prompt 0-5 at line 66; it had acknowledged no weights",
    ),
    "served without joining": (drop(Joined, -1), "I4", r"worker 5 was given prompt 0-5 .* it had not joined"),
    "served after leaving": (
        insert(Left(**PLACE, worker=5), after=Synced, index=-1),
        "I4",
        r"worker 5 was given prompt 0-5 at line 68; it had left at line 66",
    ),
    "served another version": (
        change(Dispatched, -1, version=1),
        "I4",
        r"worker 5 was given prompt 0-6 at line 69 for version 1; it last acknowledged version 2",
    ),
    "a wrong canary": (change(Synced, -1, canary=0.5), "I4", r"worker 5 .* canary was 0.5, and 0.001"),
    "a canary that is no number": (change(Synced, -1, canary=float("nan")), "I4", r"worker 5 .* canary was nan"),
    "wrong checksums": (change(Synced, -1, checksums_agree=False), "I4", r"worker 5 .* checksums did not agree"),
    "weights never published": (change(Synced, -1, generation=1), "I4", r"worker 5 .* generation 1 .* never published"),
    "joined twice": (double(Joined, -1), "I4", r"worker 5 joined at line 65, and at line 64 without leaving"),
    "killed and not resumed": (cut(RunEnded, 0), "I7", r"process 1 that started at line 47 .* --resume"),
    "worked without resuming": (drop(Resumed, -1), "I7", r"started at line 47 worked \(line 53\) without a resume"),
    "worked after its end": (
        insert(RunEnded(**PLACE, how="interrupted", exit_code=130), after=Synced, index=-1),
        "I7",
        r"prompt 0-6 was admitted at line 67, after the run had ended",
    ),
    "an error without a name": (
        change(RunEnded, 0, how="failed", error="KeyError", exit_code=1),
        "I7",
        r"failed at line 75 by KeyError",
    ),
    "a failure that exits with 0": (
        change(RunEnded, 0, how="failed", error="WorkerLost"),
        "I7",
        r"failed at line 75 with exit code 0",
    ),
    "finished with an error": (change(RunEnded, 0, exit_code=1), "I7", r"finished at line 75 with exit code 1"),
    "trained by a lost learner": (drop(LearnerRestarted), "I7", r"prompt 0-3 .* lost at line 31 \(rank 1 died\)"),
    "finished with a lost learner": (
        insert(LearnerLost(**PLACE), after=Trained, index=-1),
        "I7",
        r"though the learner was lost at line 73",
    ),
    "accepted after it was requeued": (
        change(Accepted, 1, attempt=2),
        "attempts",
        r"prompt 0-2 was accepted at line 22 from attempt 2, which was requeued at line 17",
    ),
    "accepted after it was fenced": (
        change(Accepted, 1, attempt=3),
        "attempts",
        r"prompt 0-2 was accepted at line 22 from attempt 3, which was fenced at line 19",
    ),
    "accepted and then fenced": (
        change(Fenced, 0, attempt=0),
        "attempts",
        r"attempt 0 of worker 1 was fenced at line 19, and it was accepted at line 15",
    ),
    "accepted from another prompt's attempt": (
        change(Accepted, -2, attempt=9),
        "attempts",
        r"prompt 0-5 .* attempt 9, which was never dispatched",
    ),
    "an attempt given twice": (
        change(Dispatched, -1, attempt=2),
        "attempts",
        r"attempt 2 was given out again at line 69",
    ),
    "two attempts at once": (
        insert(Dispatched(**PLACE, prompt="0-6", attempt=50, worker=5, version=2), after=Dispatched, index=-1),
        "attempts",
        r"prompt 0-6 .* attempt 50 at line 70 while attempt 3 was under way",
    ),
    "requeued from no attempt": (
        insert(Requeued(**PLACE, prompt="0-6", attempt=60, worker=5), after=Trained, index=-1),
        "attempts",
        r"prompt 0-6 was requeued at line 73 from attempt 60, which was never dispatched",
    ),
    "a step too small": (drop(Trained, -1), "steps", r"step 3 trained 1 prompts \(the last at line 71\), not 2"),
    "a step out of order": (change(Trained, -1, step=5), "steps", r"step 5 \(line 72, prompt 0-6\) follows step 3"),
    "resumed after another step": (change(Resumed, -1, step=2), "steps", r"line 48 resumes after step 2, .* step 1"),
    "finished too early": (change(RunStarted, -1, num_steps=9), "steps", r"after step 3, and it has 9"),
    "a line missing": (
        lambda events: [event for event in events if event.seq != 29],
        "ledger",
        r"line 30 \(learner_lost\) has seq 30, and 29 was next",
    ),
}


def test_a_true_history_keeps_every_promise() -> None:
    report = verify_events(whole_run().events)
    assert report.violations == {}
    totals = report.totals
    assert (totals.trained, totals.steps, totals.failed, totals.open_prompts) == (6, 3, 1, ())
    assert (totals.attempts, totals.requeued, totals.fenced) == (12, 2, 1)
    assert (totals.num_processes, totals.num_resumes, totals.num_void) == (2, 2, 21)
    assert totals.staleness == {0: 6}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_promise_is_found_with_its_culprit(name: str) -> None:
    mutate, invariant, message = MUTATIONS[name]
    found = verify_events(mutate(whole_run().events)).violations
    assert re.search(message, found.get(invariant, "not found")), found


def test_staleness_is_counted_as_it_was() -> None:
    run = TinyLedger(num_steps=2)
    for _ in range(4):
        run.admit()
        run.dispatch(0)
    for attempt in list(run.attempts):
        run.accept(attempt)
    assert run.train()
    assert run.train()
    run.end("finished")
    totals = verify_events(run.events).totals
    assert (totals.staleness, totals.staleness_mean, totals.staleness_max) == ({0: 2, 1: 2}, 0.5, 1)


def test_weights_of_void_work_serve_no_more() -> None:
    run = TinyLedger()
    run.checkpoint()
    run.train_one_step()
    run.sync(0)
    run.restart_learner()
    events = run.events[: place_of(run.events, Resumed) + 2]
    served = Dispatched(seq=len(events), time=0, prompt="0-0", attempt=50, worker=0, version=1)
    found = verify_events([*events, served], live=True).violations
    assert "worker 0 was given prompt 0-0" in found["I4"]
    assert "its version 1 is of work that line" in found["I4"]


def test_a_group_of_void_work_is_not_accepted() -> None:
    run = TinyLedger(num_steps=1)
    run.admit()
    run.checkpoint()
    run.dispatch(0)
    run.restart_learner()
    run.dispatch(0)
    run.accept(1)
    run.finish()
    assert verify_events(run.events).violations == {}
    found = verify_events(change(Accepted, 0, attempt=0)(run.events)).violations
    assert "from attempt 0, which was of work that a resume made void" in found["attempts"]


def test_a_run_resumed_with_fewer_steps_leaves_what_it_cannot_train_any_more_and_nothing_else() -> None:
    run = TinyLedger(num_steps=3)
    for _ in range(4):
        run.admit()
        run.dispatch(0)
    for attempt in list(run.attempts):
        run.accept(attempt)
    run.train()
    run.checkpoint()
    run.kill_and_resume(num_fewer_steps=2)
    run.finish()
    report = verify_events(run.events)
    assert (report.violations, report.totals.open_prompts) == ({}, ("0-2", "0-3"))
    one_more = Admitted(**PLACE, prompt="0-4", position=4, version=1)
    found = verify_events(insert(one_more, after=Resumed)(run.events)).violations
    assert "prompt 0-4 was lost" in found["I1"]


def test_a_live_run_need_not_have_ended() -> None:
    events = whole_run().events[:60]
    assert verify_events(events, live=True).violations == {}
    assert "I7" in verify_events(events).violations


def by_chance(seed: int) -> TinyLedger:
    """A run to which anything happens, in any order."""
    chance = random.Random(seed)
    run = TinyLedger(num_steps=4)
    for _ in range(chance.randrange(80)):
        worker = chance.choice(sorted(run.workers)) if run.workers else run.join()
        attempt = chance.choice(sorted(run.attempts)) if run.attempts else None
        doings: list[Callable[[], object]] = [
            *[run.admit] * 4,
            *[lambda worker=worker: run.dispatch(worker)] * 6,
            *[run.train] * 3,
            lambda worker=worker: run.sync(worker),
            lambda worker=worker: run.leave(worker),
            run.join,
            run.fence,
            run.filter,
            run.checkpoint,
            run.restart_learner,
            run.kill_and_resume,
            lambda: run.kill_and_resume(num_fewer_steps=1),
        ]
        if attempt is not None:
            doings += [
                *[lambda attempt=attempt: run.accept(attempt)] * 6,
                lambda attempt=attempt: run.requeue(attempt),
                lambda attempt=attempt: run.fail(attempt),
            ]
        chance.choice(doings)()
    run.finish()
    return run


@given(seed=st.integers(min_value=0))
@settings(deadline=None, max_examples=150)
def test_whatever_happens_to_a_true_run_it_keeps_its_promises(seed: int) -> None:
    assert verify_events(by_chance(seed).events).violations == {}


@given(
    seed=st.integers(min_value=0),
    which=st.integers(min_value=0),
    doubled=st.booleans(),
    kind=st.sampled_from([Trained, Accepted]),
)
@settings(deadline=None, max_examples=150)
def test_no_training_and_no_group_can_be_lost_or_doubled_unseen(
    seed: int, which: int, doubled: bool, kind: type
) -> None:
    events = by_chance(seed).events
    counted = counting(events)
    trained = {event.prompt for event in counted if isinstance(event, Trained)}
    culprits = [event for event in counted if isinstance(event, kind) and getattr(event, "prompt", "") in trained]
    place = culprits[which % len(culprits)].seq
    changed = [*events[: place + 1], *events[place:]] if doubled else [*events[:place], *events[place + 1 :]]
    assert verify_events(renumbered(changed)).violations != {}


def counting(events: Sequence[Event]) -> list[Event]:
    """The events that no resume made void, worked out the slow way."""
    kept: list[Event] = []
    for event in events:
        if isinstance(event, Resumed):
            kept = [earlier for earlier in kept if earlier.seq <= event.kept]
        kept.append(event)
    return kept
