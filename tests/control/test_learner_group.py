"""What the failure of one rank does to a call of all."""

import asyncio
import time
from pathlib import Path
from typing import Any, cast

import pytest

from services.contracts.errors import DeadlineExceeded, LearnerLost, NonFiniteStep, TriremeError, WorkerLost
from services.control.actor import Actor
from services.control.learner_group import LearnerGroup

DIED = WorkerLost("the process of learner rank 1 was lost")
SILENT = DeadlineExceeded(waited_for="save of learner rank 1", waited_s=600, advice="see its log")
FROZEN = DeadlineExceeded(waited_for="pulse of learner rank 1", waited_s=20, advice="see its log")
CUT_OFF = TriremeError("save of learner rank 0 failed: RuntimeError: Connection closed by peer")


class Rank:
    """Fails with `error` after `delay_s`, or hangs in a collective when there is none; its pulse fails with `pulse`."""

    def __init__(self, error: Exception | None, *, delay_s: float = 0.0, pulse: Exception | None = None) -> None:
        self._error = error
        self._delay_s = delay_s
        self._pulse = pulse
        self.killed = False

    async def call(self, method: str, *args: object, timeout_s: float) -> Any:  # Any: as of the real one
        await asyncio.sleep(self._delay_s if self._error else timeout_s)
        if self._error:
            raise self._error

    async def pulse(self, *, timeout_s: float) -> None:
        if self._pulse:
            raise self._pulse

    async def kill(self, *, timeout_s: float) -> None:
        self.killed = True


HANGS = Rank(None)


def group(*ranks: Rank) -> LearnerGroup:
    return LearnerGroup([cast(Actor, rank) for rank in ranks], start_timeout_s=60, timeout_s=60, pulse_timeout_s=20)


@pytest.mark.parametrize("error", [DIED, SILENT])
async def test_a_rank_that_died_or_is_silent_loses_the_learner_at_once(error: Exception) -> None:
    started = time.monotonic()
    with pytest.raises(LearnerLost, match="learner rank 1"):
        await group(HANGS, Rank(error)).save(Path())
    assert time.monotonic() - started < 1


async def test_a_rank_without_a_pulse_loses_the_learner_long_before_its_call_is_late() -> None:
    started = time.monotonic()
    with pytest.raises(LearnerLost, match="waited 20 s for pulse of learner rank 1"):
        await group(HANGS, Rank(None, pulse=FROZEN)).save(Path())
    assert time.monotonic() - started < 5


async def test_a_rank_that_works_for_long_and_has_a_pulse_is_left_alone() -> None:
    with pytest.raises(NonFiniteStep):
        await group(Rank(NonFiniteStep("loss is nan"), delay_s=4.5)).save(Path())


async def test_a_ranks_own_error_passes_as_it_is() -> None:
    with pytest.raises(NonFiniteStep, match="loss is nan"):
        await group(HANGS, Rank(NonFiniteStep("loss is nan"))).save(Path())


async def test_an_error_that_only_echoes_the_death_of_another_rank_is_the_loss_of_the_learner() -> None:
    with pytest.raises(LearnerLost, match="learner rank 1 was lost"):
        await group(Rank(CUT_OFF), Rank(DIED, delay_s=0.1)).save(Path())


async def test_an_unforeseen_error_while_the_others_live_passes_as_it_is() -> None:
    with pytest.raises(TriremeError, match="Connection closed") as caught:
        await group(Rank(CUT_OFF), HANGS).save(Path())
    assert caught.type is TriremeError


async def test_every_rank_is_killed() -> None:
    ranks = [Rank(DIED), Rank(None)]
    await group(*ranks).kill(timeout_s=1)
    assert all(rank.killed for rank in ranks)
