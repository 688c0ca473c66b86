"""One process of the run on a Ray cluster: called by method name, located, ended.

It must not know what the process does, nor where there is room for it. Invariants: every wait has a deadline and its
error says what was waited for; a failure inside the process arrives as the typed error that was raised there, and its
death, or its machine's, as `WorkerLost`.
"""

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from services.contracts.errors import DeadlineExceeded, TriremeError, WorkerLost
from services.control.process_tree import end_process_tree, start_ticks

PULSE = "pulse"
"""Ray's concurrency group of what a process answers while it is busy."""

_KNOWN_WITHIN_S = 1.0
"""Time to look up a location that arrived long ago."""

_LOOK_EVERY_S = 0.5
"""Pause between two looks at whether a machine was lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """Where a process runs.

    Attributes:
        node_id: Ray's name of the machine.
        node: its address.
        started: tick at which the process started, which tells it from a later one with the same pid.
    """

    node_id: str
    node: str
    pid: int
    started: int


class Actor:
    """A process of the run that hosts an object; safe to call many times at once.

    Args:
        name: what errors call it.
    """

    def __init__(self, handle: Any, *, name: str) -> None:  # Any: Ray's handles are untyped
        self._handle = handle
        self.name = name
        # Asked first of all, so that the answer does not queue behind a long call.
        self._located = handle.__ray_call__.remote(_settle, Path.cwd())

    async def call(
        self, method: str, *args: object, timeout_s: float, cancels: bool = False
    ) -> Any:  # Any: what the method returns
        """Call `method` of the object in the process, which is made first if need be.

        Args:
            cancels: whether cancelling the call cancels the method there, a coroutine, which goes on otherwise.

        Raises:
            DeadlineExceeded: no answer within `timeout_s`.
            WorkerLost: the process died, or its machine was lost.
            TriremeError: whatever typed error the method, or the constructor, raised.
        """
        reference = self._handle.call.remote(method, *args)
        try:
            return await self._answer(reference, method, timeout_s)
        except asyncio.CancelledError:
            if cancels and ray.is_initialized():
                ray.cancel(reference)
            raise

    async def make(self, *, timeout_s: float) -> None:
        """Wait until the process has made what it hosts. Raises as `call` does."""
        await self._answer(self._handle.make.remote(), "start", timeout_s)

    async def pulse(self, *, timeout_s: float) -> None:
        """Have the process answer beside whatever it does; of one that was spawned with a pulse. Raises as `call` does.

        A frozen process does not, and one whose machine is cut off; Ray itself notices neither for minutes.
        """
        answer = self._handle.__ray_call__.options(concurrency_group=PULSE).remote(_is_here)
        await self._answer(answer, "pulse", timeout_s)

    async def files(self, folder: Path, *, timeout_s: float) -> Mapping[str, int]:
        """What `files_below` finds there, where the process runs. Raises as `call` does."""
        sizes: Mapping[str, int] = await self._answer(
            self._handle.__ray_call__.remote(_files, folder), "list of files", timeout_s
        )
        return sizes

    async def locate(self, *, timeout_s: float) -> Location:
        """Where the process runs; waits until it was started. Raises as `call` does."""
        location: Location = await self._answer(self._located, "start of the process", timeout_s)
        return location

    async def kill(self, *, timeout_s: float) -> None:
        """End the process and all that it started, even when it is frozen; quietly when they are gone already.

        Raises:
            DeadlineExceeded: its machine neither ended them nor was found to be lost within `timeout_s`.
        """
        try:
            location = await self._known_location(min(timeout_s, _KNOWN_WITHIN_S))
            if location is not None:
                with suppress(WorkerLost):
                    await self._end(location, timeout_s)
        finally:
            if ray.is_initialized():  # Else Ray would start anew, or join another cluster.
                ray.kill(self._handle)

    async def _known_location(self, timeout_s: float) -> Location | None:
        try:
            return await self.locate(timeout_s=timeout_s)
        except (WorkerLost, DeadlineExceeded):
            return None  # It never ran, and Ray drops it.

    async def _end(self, location: Location, timeout_s: float) -> None:
        there = NodeAffinitySchedulingStrategy(location.node_id, soft=False)
        task = ray.remote(end_process_tree).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        reference = task.remote(location.pid, location.started)
        ended = asyncio.ensure_future(self._answer(reference, "kill", timeout_s))
        try:
            # Ray finds a machine lost long before it gives up what is to run there.
            while not ended.done() and await asyncio.to_thread(_is_alive, location.node_id):
                await asyncio.wait([ended], timeout=_LOOK_EVERY_S)
            if ended.done():
                await ended
        finally:
            ended.cancel()

    async def _answer(self, reference: Any, method: str, timeout_s: float) -> Any:  # Any: as in `call`
        try:
            async with asyncio.timeout(timeout_s):  # `wait_for` can lose a cancellation that comes with the answer.
                return await asyncio.wrap_future(reference.future())
        except RayTaskError as error:
            raise original(error, self.name, method) from error
        except RayError as error:
            raise WorkerLost(f"the process of {self.name} was lost during {method}: {error}") from error
        except TimeoutError as error:
            raise DeadlineExceeded(
                waited_for=f"{method} of {self.name}", waited_s=timeout_s, advice="see its log in Ray's session folder"
            ) from error


def _is_here(_: object) -> None:
    """Return, which shows that the process runs."""


def files_below(folder: Path) -> Mapping[str, int]:
    """Bytes of each file below a folder, by its path from there."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def _files(_: object, folder: Path) -> Mapping[str, int]:
    return files_below(folder)


def _settle(_: object, folder: Path) -> Location:
    """Work in the folder of the command where this machine has it, so that a relative path means the same."""
    with suppress(OSError):
        os.chdir(folder)
    pid = os.getpid()
    started = start_ticks(pid)
    assert started is not None
    node_id = ray.get_runtime_context().get_node_id()
    return Location(node_id=node_id, node=ray.util.get_node_ip_address(), pid=pid, started=started)


def _is_alive(node_id: str) -> bool:
    return any(node["Alive"] for node in ray.nodes() if node["NodeID"] == node_id)


def original(error: RayTaskError, name: str, method: str) -> TriremeError:
    """The typed error that `method` raised in the process called `name`."""
    if isinstance(error.cause, TriremeError):
        return error.cause
    return TriremeError(f"{method} of {name} failed: {error}")
