"""Admission, buffer, ledger and clock: the pure parts of the control plane."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.records import Reward, RolloutGroup, ScoredGroup
from services.control.admission import AdmissionRule
from services.control.ledger import Ledger
from services.control.rollout_buffer import RolloutBuffer
from services.control.step_clock import StepClock
from tests.fakes import make_prompt, make_rollout


def scored(row: int) -> ScoredGroup:
    prompt = make_prompt(row)
    group = RolloutGroup(prompt=prompt, rollouts=(make_rollout(prompt),))
    return ScoredGroup(group=group, rewards=(Reward(value=float(row)),))


def test_admission_follows_the_staleness_rule() -> None:
    rule = AdmissionRule(prompts_per_step=8, max_staleness=2)
    assert rule.room(accepted=0, running=0, version=0) == 24
    assert rule.room(accepted=10, running=6, version=0) == 8
    assert rule.room(accepted=24, running=0, version=1) == 8
    assert rule.room(accepted=30, running=0, version=0) == 0


@given(st.integers(0, 4), st.integers(1, 8), st.lists(st.booleans(), max_size=200))
def test_no_group_waits_longer_than_the_staleness_bound(k: int, batch: int, finish: list[bool]) -> None:
    """Whatever the order of admissions, finishes and steps, a trained group is at most k versions old."""
    rule = AdmissionRule(prompts_per_step=batch, max_staleness=k)
    version, accepted, running, waiting = 0, 0, [], []
    for finishes in finish:
        running += [version] * rule.room(accepted=accepted, running=len(running), version=version)
        if finishes and running:
            waiting.append(running.pop(0))
            accepted += 1
        if len(waiting) >= batch:
            trained, waiting = waiting[:batch], waiting[batch:]
            assert all(version - admitted <= k for admitted in trained)
            version += 1


def test_the_buffer_gives_groups_in_the_order_of_their_admission() -> None:
    buffer = RolloutBuffer(capacity=4)
    for admission in (3, 1, 0, 2):
        buffer.put(admission, scored(admission))
    assert [group.group.prompt.row for group in buffer.take(3)] == [0, 1, 2]
    assert len(buffer) == 1


def test_the_buffer_is_bounded() -> None:
    buffer = RolloutBuffer(capacity=1)
    buffer.put(0, scored(0))
    with pytest.raises(AssertionError, match="1 groups wait and 1 may"):
        buffer.put(1, scored(1))


def test_a_prompt_ends_once(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.admit("0-1", version=0)
        assert ledger.num_running == 1
        ledger.accept("0-1")
        assert (ledger.num_running, ledger.num_accepted) == (0, 1)
        ledger.end("0-1", "trained", step=1)
        with pytest.raises(AssertionError, match="ended already"):
            ledger.end("0-1", "trained", step=1)
        assert ledger.open_prompts == {}


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
