"""Scores in child processes, each of which is killed and replaced when it hangs or dies.

For rewards that can get stuck beyond the reach of a thread's timeout (computer algebra on a hostile expression holds
the interpreter's lock), or that may crash. The other end of the pipes is `isolated_process`. It must not know gRPC.
Invariants: one sample is in a process at a time, so a hang costs one sample; a reply is read by the call that it
answers, or its process is killed.
"""

import asyncio
import os
import struct
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from reward_server.config import RewardServerConfig
from reward_server.function import RewardFunction
from reward_server.part_config import RewardSource
from reward_server.stepping import side_by_side
from services.contracts.errors import UserError
from services.contracts.records import Failure, FailureCode, Reward, RewardSample
from services.contracts.settings import Section
from services.processes.lifetime import kill
from services.protos.reward.v1 import reward_pb2
from services.transport.reward_codec import decode_outcome, encode_sample

ENDS_WITHIN_S = 2.0
"""From the end of a process's pipes to its own, in seconds."""
START_TIMEOUT_S = 60.0
LENGTH = struct.Struct(">I")
"""What precedes each frame on the pipes: its length in bytes."""


class Order(Section):
    """A child's first frame: what it is to do, and its limits."""

    service: RewardSource
    """The reward to load."""
    memory_bytes: int
    """Address space of the process, in bytes; 0 for no limit."""
    parent_pid: int
    """The process that started this one, with which it ends."""


class IsolatedScorer:
    """Scores `service`, of which `function` is the copy in this process, in `num_processes` children."""

    batched = False

    def __init__(self, service: RewardSource, function: RewardFunction, config: RewardServerConfig) -> None:
        self.description = function.description
        self._timeout_s = config.timeout_s
        order = Order(service=service, memory_bytes=config.isolated_memory_bytes, parent_pid=os.getpid())
        self._children = [Child(order) for _ in range(config.num_processes)]
        self._idle: asyncio.LifoQueue[Child] = asyncio.LifoQueue()

    async def start(self) -> None:
        await asyncio.gather(*(child.ensure_ready() for child in self._children))
        for child in self._children:
            self._idle.put_nowait(child)

    async def close(self) -> None:
        await asyncio.gather(*(child.kill() for child in self._children))

    def counters(self) -> Mapping[str, float]:
        return {}  # What the reward counts stays in its processes.

    async def score(self, samples: Sequence[RewardSample]) -> list[Reward | Failure]:
        return await side_by_side(self._score_one, samples, at_once=len(self._children))

    async def _score_one(self, sample: RewardSample, on_wait: Callable[[], None]) -> Reward | Failure:
        on_wait()
        child = await self._idle.get()  # No deadline: each process comes back by its own.
        # A process that is killed takes long to replace, so it goes on when its caller leaves.
        return await asyncio.shield(asyncio.create_task(self._score_in(child, sample)))

    async def _score_in(self, child: "Child", sample: RewardSample) -> Reward | Failure:
        try:
            await child.ensure_ready()
            return await asyncio.wait_for(child.score(sample), self._timeout_s)
        except TimeoutError:
            await child.kill()
            message = f"the reward did not return within {self._timeout_s:g} s (timeout_s); its process was killed"
            return Failure(code=FailureCode.TIMEOUT, message=message, retryable=True)
        except (EOFError, ConnectionError):
            message = f"the reward's process ended with code {await child.reap()} while it scored this sample"
            return Failure(code=FailureCode.INTERNAL, message=message)
        except UserError as error:
            return Failure(code=FailureCode.UNAVAILABLE, message=str(error), retryable=True)
        except asyncio.CancelledError:
            await child.kill()
            raise
        finally:
            self._idle.put_nowait(child)


class Child:
    """One process, started when it is needed and again after it was killed."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._process: Process | None = None

    async def ensure_ready(self) -> None:
        """Start the process unless it runs, and wait until it has loaded the reward.

        Raises:
            UserError: the reward does not load in a process of its own.
        """
        if self._process is not None:
            assert self._process.stdin is not None
            if self._process.returncode is None and not self._process.stdin.is_closing():
                return
            await self.reap()  # It ended while it had nothing to score.
        command = (sys.executable, "-m", "reward_server.isolated_process")
        self._process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        try:
            await asyncio.wait_for(self._exchange(self._order.model_dump_json().encode()), START_TIMEOUT_S)
        except (EOFError, ConnectionError, TimeoutError) as error:
            code = await self.reap()
            raise UserError(
                f"reward {self._order.service.name!r} did not load in a process of its own (exit code {code}); its "
                "error is above; set isolate: false to run it in the server's process"
            ) from error

    async def score(self, sample: RewardSample) -> Reward | Failure:
        """The outcome of one sample. Raises EOFError or ConnectionError when the process ends instead."""
        reply = await self._exchange(encode_sample(sample, with_token_ids=True).SerializeToString())
        outcome = decode_outcome(reward_pb2.Result.FromString(reply))
        assert outcome is not None
        return outcome

    async def reap(self) -> int | None:
        """The exit code of a process that closed its pipes; it is killed when it does not end by itself."""
        # Signalling a process that has just ended would take its exit code from the event loop.
        if self._process is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), ENDS_WITHIN_S)
        return await self.kill()

    async def kill(self) -> int | None:
        """End the process and return its exit code; None where there was none, or it has not ended yet."""
        process, self._process = self._process, None
        return None if process is None else await kill(process)

    async def _exchange(self, request: bytes) -> bytes:
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(LENGTH.pack(len(request)) + request)
        await self._process.stdin.drain()
        (length,) = LENGTH.unpack(await self._process.stdout.readexactly(LENGTH.size))
        return await self._process.stdout.readexactly(length)
