"""How a call to a process ends where its caller gives it up as its answer comes."""

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from services.control.actor import Actor


class Handle:
    """Stands for Ray's: calls stay open until the test answers them."""

    def __init__(self) -> None:
        self.answers: list[Future[Any]] = []  # Any: whatever a method returns
        self.call = self.__ray_call__ = SimpleNamespace(remote=self._remote)

    def _remote(self, *_: object) -> Any:  # Any: Ray's reference
        self.answers.append(Future())
        return SimpleNamespace(future=lambda answer=self.answers[-1]: answer)


@pytest.mark.parametrize("turns", range(3))
async def test_a_call_that_is_given_up_in_the_moment_of_its_answer_is_given_up(turns: int) -> None:
    handle = Handle()
    calling = asyncio.create_task(Actor(handle, name="rollout worker 0").call("health", timeout_s=5))
    await asyncio.sleep(0)
    handle.answers[-1].set_result(3)
    for _ in range(turns):
        await asyncio.sleep(0)
    if calling.cancel():
        with pytest.raises(asyncio.CancelledError):
            await calling
    else:
        assert calling.result() == 3
