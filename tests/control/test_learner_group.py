"""What the failure of one rank does to a call of all."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import pytest

from services.contracts.errors import (
    CheckpointError,
    DeadlineExceeded,
    LearnerLost,
    NonFiniteStep,
    TriremeError,
    WorkerLost,
)
from services.control.actor import Actor
from services.control.learner_group import LearnerGroup

DIED = WorkerLost("the process of learner rank 1 was lost")
SILENT = DeadlineExceeded(waited_for="save of learner rank 1", waited_s=600, advice="see its log")
FROZEN = DeadlineExceeded(waited_for="pulse of learner rank 1", waited_s=20, advice="see its log")
CUT_OFF = TriremeError("save of learner rank 0 failed: RuntimeError: Connection closed by peer")


class Rank:
    """Fails with `error` after `delay_s`; its pulse fails with `pulse`. It says that it wrote the files `wrote`."""

    def __init__(
        self,
        error: Exception | None = None,
        *,
        delay_s: float = 0.0,
        pulse: Exception | None = None,
        wrote: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._error = error
        self._delay_s = delay_s
        self._pulse = pulse
        self._wrote = wrote
        self.killed = False

    async def call(self, method: str, *args: object, timeout_s: float) -> Any:  # Any: as of the real one
        await asyncio.sleep(self._delay_s)
        if self._error:
            raise self._error

    async def files(self, folder: Path, *, timeout_s: float) -> Mapping[str, int]:
        return self._wrote

    async def pulse(self, *, timeout_s: float) -> None:
        if self._pulse:
            raise self._pulse

    async def kill(self, *, timeout_s: float) -> None:
        self.killed = True


HANGS = Rank(delay_s=60)


def group(*ranks: Rank, seen_within_s: float = 10) -> LearnerGroup:
    return LearnerGroup(
        [cast(Actor, rank) for rank in ranks],
        start_timeout_s=60,
        timeout_s=60,
        pulse_timeout_s=20,
        seen_within_s=seen_within_s,
    )


@pytest.mark.parametrize("error", [DIED, SILENT])
async def test_a_rank_that_died_or_is_silent_loses_the_learner_at_once(error: Exception) -> None:
    started = time.monotonic()
    with pytest.raises(LearnerLost, match="learner rank 1"):
        await group(HANGS, Rank(error)).save(Path())
    assert time.monotonic() - started < 1


async def test_a_rank_without_a_pulse_loses_the_learner_long_before_its_call_is_late() -> None:
    started = time.monotonic()
    with pytest.raises(LearnerLost, match="waited 20 s for pulse of learner rank 1"):
        await group(HANGS, Rank(delay_s=60, pulse=FROZEN)).save(Path())
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


async def test_what_a_rank_wrote_is_waited_for_until_it_is_here(tmp_path: Path) -> None:
    ranks = Rank(wrote={"rank_0.pt": 3}), Rank(wrote={"rank_0.pt": 3, "rank_1.pt": 2})
    (tmp_path / "rank_0.pt").write_bytes(b"abc")
    saving = asyncio.ensure_future(group(*ranks).save(tmp_path))
    await asyncio.sleep(0.7)
    assert not saving.done()
    (tmp_path / "rank_1.pt").write_bytes(b"ab")
    await asyncio.wait_for(saving, 5)


async def test_what_a_rank_wrote_on_a_disk_of_its_own_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "rank_0.pt").write_bytes(b"ab")  # Not all of it.
    with pytest.raises(CheckpointError, match=rf"wrote rank_0\.pt below {tmp_path} .* storage that all machines share"):
        await group(Rank(wrote={"rank_0.pt": 3}), seen_within_s=0.1).save(tmp_path)


async def test_every_rank_is_killed() -> None:
    ranks = [Rank(DIED), Rank()]
    await group(*ranks).kill(timeout_s=1)
    assert all(rank.killed for rank in ranks)
