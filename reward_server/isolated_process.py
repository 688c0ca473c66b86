"""The process at the other end of `isolation`: loads one reward, then answers one sample at a time over its pipes.

    python -m reward_server.isolated_process          (started by `isolation.Child` only)

Frames are a length and that many bytes: first an `Order` as JSON, answered by an empty frame once the reward is loaded;
then each sample, answered by its result. It must not know of other processes. Invariant: it ends with its parent, and
whatever the reward prints goes to standard error.
"""

import asyncio
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import BinaryIO

from reward_server.assembly import load_reward
from reward_server.function import RewardFunction
from reward_server.isolation import LENGTH, Order
from reward_server.scorer import awaited, guarded, one_each, to_outcome
from services.contracts.errors import TriremeError
from services.contracts.records import Failure, Reward, RewardSample
from services.processes.lifetime import die_with_parent, leave_sigterm_to_parent
from services.protos.reward.v1 import reward_pb2
from services.transport.reward_codec import decode_sample, encode_result


def main() -> int:
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    frames = _frames(requests)
    order = Order.model_validate_json(next(frames))
    try:
        die_with_parent(order.parent_pid)
        leave_sigterm_to_parent()
        if order.memory_bytes:
            resource.setrlimit(resource.RLIMIT_AS, (order.memory_bytes, order.memory_bytes))
        function = load_reward(order.service)
    except TriremeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    with _opened(function):
        _write(replies, b"")
        for frame in frames:
            sample = decode_sample(reward_pb2.Sample.FromString(frame))
            _write(replies, encode_result(sample.id, _score(function, sample)).SerializeToString())
    return 0


@contextmanager
def _opened(function: RewardFunction) -> Iterator[None]:
    """Around all samples of a function that is not async."""
    if function.is_async:
        yield
        return
    stack = AsyncExitStack()
    with asyncio.Runner() as runner:
        runner.run(stack.enter_async_context(function.opened()))
        try:
            yield
        finally:
            runner.run(stack.aclose())


def _score(function: RewardFunction, sample: RewardSample) -> Reward | Failure:
    argument = [sample] if function.batched else sample
    if function.is_async:
        returned = asyncio.run(_opened_and_awaited(function, argument))
    else:
        returned = guarded(function.score)(argument)
    if function.batched:
        (returned,) = one_each(returned, 1)
    return to_outcome(returned, sample, function.description)


async def _opened_and_awaited(function: RewardFunction, argument: RewardSample | list[RewardSample]) -> object:
    """What an async function returns; each sample has an event loop of its own, and so has what the function opens."""
    async with function.opened():
        return await awaited(function.score, argument)  # type: ignore[arg-type]  # it is async


def _frames(pipe: BinaryIO) -> Iterator[bytes]:
    while header := pipe.read(LENGTH.size):
        yield pipe.read(*LENGTH.unpack(header))


def _write(pipe: BinaryIO, frame: bytes) -> None:
    pipe.write(LENGTH.pack(len(frame)) + frame)
    pipe.flush()


if __name__ == "__main__":
    sys.exit(main())
