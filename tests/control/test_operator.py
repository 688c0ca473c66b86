"""What becomes of an operator's requests: phases outlive a session, and a late checkpoint is written, or told of."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rollout_workers.fleet import Fleet
from services.contracts.errors import CheckpointError, DeadlineExceeded
from services.control.config import RunConfig
from services.control.operator import Operator
from services.control.session import Session
from tests.simulation.virtual_time import VirtualTimeLoop

SAVE_S = 60.0


class FakeSession:
    """What an operator uses of a session; saving takes a minute."""

    num_trained, saved_step, last_step = 0, 0, None

    def __init__(self, *, error: CheckpointError | None = None) -> None:
        self.woken = 0
        self.saved = 0
        self.machine = SimpleNamespace(phase="running", trained_steps=1, version=1, num_running=0, num_waiting=0)
        self.controller = SimpleNamespace(learner_is_free=asyncio.Lock(), learner_is_sound=True, wake=self._wake)
        self._error = error

    async def checkpoint(self) -> Path:
        await asyncio.sleep(SAVE_S)
        if self._error is not None:
            raise self._error
        self.saved += 1
        return Path("step_1")

    def _wake(self) -> None:
        self.woken += 1


def make_operator(notes: list[str], *, trouble: str = "") -> Operator:
    config = RunConfig.model_validate(
        {"model": {"path": "x"}, "data": {"prompts": "x"}, "reward": {"addresses": ["localhost:1"]}}
    )
    fleet = cast(Fleet, SimpleNamespace(target=1, status=lambda: (), trouble=trouble))
    return Operator(config, fleet, lambda event, **fields: notes.append(event))


def take_over(operator: Operator, session: FakeSession) -> None:
    operator.take_over(cast(Session, session))


def on_virtual_time(story: Any) -> None:  # Any: a coroutine
    loop = VirtualTimeLoop()
    loop.run(story)
    assert loop.faults == []


def test_a_pause_holds_for_the_session_after_and_wakes_it_when_it_ends() -> None:
    async def story() -> None:
        notes: list[str] = []
        operator, first, second = make_operator(notes), FakeSession(), FakeSession()
        assert operator.status().phase == "starting"
        take_over(operator, first)
        await operator.pause()
        assert (first.machine.phase, operator.status().phase) == ("paused", "paused")
        take_over(operator, second)
        assert second.machine.phase == "paused"
        woken = second.woken
        await operator.resume()
        assert (second.machine.phase, second.woken) == ("running", woken + 1)
        await operator.drain()
        assert second.machine.phase == "draining"
        assert notes == ["paused", "resumed_by_operator", "draining"]

    on_virtual_time(story())


def test_a_checkpoint_waits_for_the_learner_and_goes_on_when_its_caller_is_gone() -> None:
    async def story() -> None:
        operator, session = make_operator([]), FakeSession()
        with pytest.raises(CheckpointError, match="has not started"):
            await operator.checkpoint(timeout_s=1.0)
        take_over(operator, session)
        await session.controller.learner_is_free.acquire()
        with pytest.raises(DeadlineExceeded, match="still going to be written"):
            await operator.checkpoint(timeout_s=5.0)
        session.controller.learner_is_free.release()
        await asyncio.sleep(SAVE_S + 1.0)
        assert session.saved == 1

    on_virtual_time(story())


def test_a_late_checkpoint_that_fails_is_told_of_in_the_status() -> None:
    async def story() -> None:
        operator = make_operator([])
        take_over(operator, FakeSession(error=CheckpointError("the disk is full")))
        with pytest.raises(DeadlineExceeded):
            await operator.checkpoint(timeout_s=5.0)
        await asyncio.sleep(SAVE_S)
        assert "the disk is full" in operator.status().message

    on_virtual_time(story())


def test_before_the_first_step_there_is_no_checkpoint_to_name() -> None:
    async def story() -> None:
        operator, session = make_operator([]), FakeSession()
        take_over(operator, session)
        session.machine.trained_steps = 0
        with pytest.raises(CheckpointError, match="has not made a step yet"):
            await operator.checkpoint(timeout_s=5.0)
        assert session.saved == 0

    on_virtual_time(story())


def test_a_learner_that_failed_midway_is_not_saved() -> None:
    async def story() -> None:
        operator, session = make_operator([]), FakeSession()
        take_over(operator, session)
        session.controller.learner_is_sound = False
        with pytest.raises(CheckpointError, match="middle of a step"):
            await operator.checkpoint(timeout_s=5.0)
        assert session.saved == 0

    on_virtual_time(story())


def test_the_status_tells_why_a_worker_that_was_asked_for_is_not_there() -> None:
    operator = make_operator([], trouble="rollout worker 1 is lost: it did not come up: no machine has room")
    assert operator.status().message == "rollout worker 1 is lost: it did not come up: no machine has room"
