"""Admission, buffer, ledger, machine and clock: the pure parts of the control plane."""

import random
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.records import Json, Reward, RolloutGroup, ScoredGroup
from services.control.admission import AdmissionRule
from services.control.ledger import Ledger
from services.control.rollout_buffer import RolloutBuffer, Waiting
from services.control.run_machine import RunMachine
from services.control.step_clock import PAUSED, StepClock
from tests.fakes import make_prompt, make_rollout


def scored(row: int, *, version: int = 0) -> ScoredGroup:
    prompt = make_prompt(row)
    group = RolloutGroup(prompt=prompt, rollouts=(make_rollout(prompt, version=version),))
    return ScoredGroup(group=group, rewards=(Reward(value=float(row)),))


def nowhere(event: str, **fields: Json) -> None:
    """Where events go that no test reads."""


def make_machine(*, batch: int, max_staleness: int, num_steps: int | None = None) -> RunMachine:
    rule = AdmissionRule(prompts_per_step=batch, max_staleness=max_staleness, num_steps=num_steps)
    return RunMachine(rule, Ledger(nowhere))


def test_admission_follows_the_staleness_rule() -> None:
    rule = AdmissionRule(prompts_per_step=8, max_staleness=2)
    assert rule.room(accepted=0, running=0, version=0) == 24
    assert rule.room(accepted=10, running=6, version=0) == 8
    assert rule.room(accepted=24, running=0, version=1) == 8
    assert rule.room(accepted=30, running=0, version=0) == 0


def test_no_more_is_admitted_than_the_run_will_train() -> None:
    rule = AdmissionRule(prompts_per_step=8, max_staleness=2, num_steps=2)
    assert rule.room(accepted=0, running=0, version=0) == 16
    assert rule.room(accepted=8, running=8, version=1) == 0


@given(st.integers(0, 4), st.integers(1, 5), st.integers(0, 2**32))
def test_whatever_finishes_when_nothing_trained_is_staler_than_the_bound(k: int, batch: int, seed: int) -> None:
    """Groups finish, fail and stall at random, also for ever; the machine waits rather than break the bound."""
    draw = random.Random(seed)
    machine = make_machine(batch=batch, max_staleness=k)
    running: dict[int, int] = {}
    position = 0
    for _ in range(150):
        for _ in range(machine.room()):
            machine.admit(position, make_prompt(position))
            running[position] = machine.version
            position += 1
        if running and draw.random() < 0.8:
            # Mostly the newest, which is the hardest on those that were admitted first.
            ended = draw.choice(sorted(running)[-2:] if draw.random() < 0.7 else sorted(running))
            version = draw.randint(running.pop(ended), machine.version)
            if draw.random() < 0.1:
                machine.fail(ended, make_prompt(ended), "no answer")
            else:
                machine.accept(ended, scored(ended, version=version))
        groups = machine.next_batch()
        if groups is not None:
            assert len(groups) == batch
            assert max(machine.trained(groups)) <= k
            if draw.random() < 0.8:
                machine.served(machine.trained_steps)
    assert machine.num_waiting <= (k + 1) * batch


@given(st.integers(0, 3), st.integers(1, 4), st.integers(0, 2**32))
def test_whatever_is_admitted_is_trained_once_it_has_finished(k: int, batch: int, seed: int) -> None:
    draw = random.Random(seed)
    machine = make_machine(batch=batch, max_staleness=k, num_steps=12)
    running: list[int] = []
    trained: Counter[int] = Counter()
    position = 0
    while machine.trained_steps < 12:
        for _ in range(machine.room()):
            machine.admit(position, make_prompt(position))
            running.append(position)
            position += 1
        groups = machine.next_batch()
        if groups is None:
            ended = running.pop(draw.randrange(len(running)))
            machine.accept(ended, scored(ended, version=machine.version))
            continue
        trained.update(group.group.prompt.row for group in groups)
        machine.trained(groups)
        machine.served(machine.trained_steps)
    assert trained == Counter(range(12 * batch))


def test_a_batch_leaves_without_its_slowest_group_until_that_ones_last_step_comes() -> None:
    machine = make_machine(batch=2, max_staleness=1)
    for position in range(4):
        machine.admit(position, make_prompt(position))
    for position in (2, 3):
        machine.accept(position, scored(position))
    first = machine.next_batch()
    assert first is not None and [group.group.prompt.row for group in first] == [2, 3]
    machine.trained(first)
    machine.served(1)
    for position in (4, 5):
        machine.admit(position, make_prompt(position))
        machine.accept(position, scored(position, version=1))
    assert machine.next_batch() is None
    for position in (0, 1):
        machine.accept(position, scored(position))
    second = machine.next_batch()
    assert second is not None and [group.group.prompt.row for group in second] == [0, 1]


def test_a_paused_machine_admits_and_trains_nothing_and_a_draining_one_admits_nothing() -> None:
    machine = make_machine(batch=1, max_staleness=1)
    machine.admit(0, make_prompt(0))
    machine.accept(0, scored(0))
    machine.phase = "paused"
    assert (machine.room(), machine.next_batch()) == (0, None)
    machine.phase = "draining"
    assert machine.room() == 0 and not machine.is_drained
    assert machine.next_batch() is not None
    assert machine.is_drained


def test_a_machine_made_from_anothers_open_work_goes_on_as_that_one() -> None:
    machine = make_machine(batch=2, max_staleness=1)
    for position in range(4):
        machine.admit(position, make_prompt(position))
    machine.accept(1, scored(1))
    rule = AdmissionRule(prompts_per_step=2, max_staleness=1)
    open_prompts = {"0-0": "admitted", "0-1": "accepted", "0-2": "admitted", "0-3": "admitted"}
    ledger = Ledger(nowhere, counts={"admitted": 4, "accepted": 1}, open_prompts=open_prompts)
    resumed = RunMachine(rule, ledger, trained_steps=0, open_work=machine.open_work)
    assert (resumed.num_running, resumed.num_waiting, resumed.room()) == (3, 1, 0)
    resumed.accept(3, scored(3))
    groups = resumed.next_batch()
    assert groups is not None and [group.group.prompt.row for group in groups] == [1, 3]


def test_a_batch_that_was_given_out_is_open_work_until_it_is_trained() -> None:
    machine = make_machine(batch=2, max_staleness=1)
    for position in range(4):
        machine.admit(position, make_prompt(position))
    for position in range(3):
        machine.accept(position, scored(position))
    groups = machine.next_batch()
    assert groups is not None
    assert [waiting.position for waiting in machine.open_work.waiting] == [0, 1, 2]
    machine.trained(groups)
    assert [waiting.position for waiting in machine.open_work.waiting] == [2]


def test_the_buffer_gives_groups_in_the_order_of_their_admission() -> None:
    buffer = RolloutBuffer(batch=3, capacity=4)
    for position in (3, 1, 0, 2):
        buffer.put(Waiting(deadline=5, position=position, group=scored(position)))
    departure = buffer.take(step=0, running=Counter())
    assert departure is not None and [waiting.position for waiting in departure.batch] == [0, 1, 2]
    assert len(buffer) == 1


def test_the_buffer_is_bounded() -> None:
    buffer = RolloutBuffer(batch=1, capacity=1)
    buffer.put(Waiting(deadline=0, position=0, group=scored(0)))
    with pytest.raises(AssertionError, match="2 groups wait and 1 may"):
        buffer.put(Waiting(deadline=0, position=1, group=scored(1)))


def test_a_prompt_ends_once() -> None:
    ledger = Ledger(nowhere)
    ledger.admit("0-1", position=0, version=0)
    assert ledger.num_running == 1
    ledger.accept("0-1", lowest_version=0, rewards=[1.0])
    assert (ledger.num_running, ledger.counts["accepted"]) == (0, 1)
    ledger.end("0-1", "trained", step=1)
    with pytest.raises(AssertionError, match="ended already"):
        ledger.end("0-1", "trained", step=1)
    assert ledger.open_prompts == {}


def test_what_cannot_be_written_down_has_not_happened() -> None:
    refused: set[str] = set()

    def note(event: str, **fields: Json) -> None:
        if event in refused:
            raise OSError("no space left")

    ledger = Ledger(note)
    machine = RunMachine(AdmissionRule(prompts_per_step=4, max_staleness=0), ledger)
    machine.admit(0, make_prompt(0))
    machine.admit(1, make_prompt(1))
    before = (dict(ledger.open_prompts), Counter(ledger.counts), machine.open_work)

    refused.update({"admitted", "accepted", "failed"})
    for change in (
        lambda: machine.admit(2, make_prompt(2)),
        lambda: machine.accept(0, scored(0)),
        lambda: machine.fail(1, make_prompt(1), "no answer"),
    ):
        with pytest.raises(OSError, match="no space left"):
            change()
        assert (dict(ledger.open_prompts), Counter(ledger.counts), machine.open_work) == before


def test_a_group_is_scored_whole_or_refused() -> None:
    prompt = make_prompt(0)
    group = RolloutGroup(prompt=prompt, rollouts=(make_rollout(prompt), make_rollout(prompt, sample_index=1)))
    with pytest.raises(ValueError, match="1 rewards for 2 rollouts"):
        ScoredGroup(group=group, rewards=(Reward(value=1.0),))


def test_phases_that_overlap_are_counted_once() -> None:
    clock = StepClock()
    with clock.phase("sampling"), clock.phase("sampling"):
        _spend(0.02)
    seconds = clock.lap()
    assert 0.02 <= seconds["sampling"] <= seconds["step"]


def test_a_pause_is_no_part_of_a_step() -> None:
    times = iter([0.0, 1.0, 4.0, 4.0, 610.0, 612.0])  # Started; waits for 3 s; is paused for 606 s; the lap.
    clock = StepClock(lambda: next(times))
    with clock.phase("waiting"):
        pass
    with clock.phase(PAUSED):
        pass
    assert clock.lap() == {"waiting": 3.0, "step": 6.0}


def test_a_lap_starts_the_clock_anew() -> None:
    clock = StepClock()
    with clock.phase("learning"):
        _spend(0.01)
    clock.lap()
    assert "learning" not in clock.lap()


def _spend(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
