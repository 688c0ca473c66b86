"""Runs a user's reward function on samples and turns whatever happens into one typed outcome per sample.

It must not know gRPC, requests or weights. Invariant: every sample gets exactly one outcome, in order; a number comes
only from the function itself and only when it is finite and within the declared range.
"""

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Protocol, SupportsFloat, cast

from reward_server.config import RewardServerConfig
from reward_server.function import RewardFunction
from reward_server.stepping import Ended, begin, go_on, side_by_side
from reward_server.threads import AbandonableThreads, TooManyAbandoned
from services.contracts.records import Failure, FailureCode, Reward, RewardDescription, RewardSample
from services.contracts.settings import Section
from services.transport.reward_validation import fault_in_reward

logger = logging.getLogger(__name__)

ABANDONED_PER_THREAD = 4


class Scorer(Protocol):
    """Anything that a reward server can serve."""

    @property
    def description(self) -> RewardDescription: ...

    @property
    def batched(self) -> bool:
        """Whether larger batches cost less per sample. Otherwise any number of calls are scored at the same time, and
        one that is cancelled leaves nothing behind that others have to wait for in vain."""
        ...

    async def start(self) -> None:
        """Get ready to score. Raises `UserError`."""
        ...

    async def score(self, samples: Sequence[RewardSample]) -> Sequence[Reward | Failure]:
        """One outcome per sample, in order."""
        ...

    async def close(self) -> None:
        """Give back what `start` took."""
        ...

    def counters(self) -> Mapping[str, float]:
        """Totals for the server's metrics, by name; each only grows."""
        ...


class ScorerOptions(Section):
    """The options of a reward that is more than a function, such as one that holds a model: it runs itself."""

    @abstractmethod
    def scorer(self, config: RewardServerConfig) -> Scorer:
        """The reward with these options; loads nothing yet."""


@dataclass(frozen=True, slots=True)
class Raised:
    """A function raised instead of returning."""

    error: BaseException


class FunctionScorer:
    """Scores with a function of this process: async ones on the event loop, others in threads.

    Args:
        function: the reward.
        timeout_s: longest run of one call of the function, in seconds.
        num_threads: calls at the same time. With 1 the function may not be safe for threads: a call that outlives its
            timeout is waited for, for as long again, and while it runs still every other call is a `Failure`.
    """

    def __init__(self, function: RewardFunction, *, timeout_s: float, num_threads: int) -> None:
        self.description = function.description
        self.batched = function.batched
        self._function = function
        self._is_async = function.is_async
        self._call = function.score if function.is_async else guarded(function.score)
        self._opened = AsyncExitStack()
        self._timeout_s = timeout_s
        self._num_threads = num_threads
        self._slots = asyncio.Semaphore(num_threads)
        self._threads: AbandonableThreads[Any, object] = AbandonableThreads(  # Any: a sample or a sequence of them
            max_abandoned=ABANDONED_PER_THREAD * num_threads if num_threads > 1 else 1
        )

    async def start(self) -> None:
        await self._opened.enter_async_context(self._function.opened())

    async def close(self) -> None:
        self._threads.close()
        await self._opened.aclose()

    def counters(self) -> Mapping[str, float]:
        return self._function.counters()

    async def score(self, samples: Sequence[RewardSample]) -> list[Reward | Failure]:
        if self.batched:
            return await self._score_batch(samples)
        returned = await side_by_side(self._run, samples, at_once=self._num_threads)
        description = self.description
        return [to_outcome(value, sample, description) for value, sample in zip(returned, samples, strict=True)]

    async def _score_batch(self, samples: Sequence[RewardSample]) -> list[Reward | Failure]:
        returned = await self._run(samples, lambda: None)
        if isinstance(returned, Raised) and len(samples) > 1:
            # One bad sample must not fail its neighbours, which may be of other requests.
            alone = await asyncio.gather(*(self._score_batch([sample]) for sample in samples))
            return [outcome for outcomes in alone for outcome in outcomes]
        return [
            to_outcome(value, sample, self.description)
            for value, sample in zip(one_each(returned, len(samples)), samples, strict=True)
        ]

    async def _run(self, argument: RewardSample | Sequence[RewardSample], on_wait: Callable[[], None]) -> object:
        """What the function returned, `Raised`, or a `Failure` of ours; `on_wait` is called where it has to wait."""
        await self._slots.acquire()
        if self._is_async:
            try:
                call = awaited(cast(Callable[..., Awaitable[object]], self._call), argument)
                found = begin(call)
                if isinstance(found, Ended):
                    return found.result
                on_wait()
                return await self._within_timeout(go_on(call, found))
            finally:
                self._slots.release()
        on_wait()
        # A thread cannot be ended, so it keeps its slot also when its caller leaves.
        return await asyncio.shield(asyncio.create_task(self._run_in_thread(argument)))

    async def _run_in_thread(self, argument: RewardSample | Sequence[RewardSample]) -> object:
        try:
            if self._num_threads == 1:
                await self._threads.wait_for_abandoned(self._timeout_s)
            return await self._within_timeout(self._threads.run(self._call, argument))
        except TooManyAbandoned as error:
            message = f"{error}; restart the server, and set isolate: true for a reward that can hang"
            return Failure(code=FailureCode.UNAVAILABLE, message=message, retryable=True)
        finally:
            self._slots.release()

    async def _within_timeout(self, call: Awaitable[object]) -> object:
        try:
            async with asyncio.timeout(self._timeout_s) as deadline:
                return await call
        except TimeoutError:
            assert deadline.expired()
            message = f"the reward did not return within {self._timeout_s:g} s (timeout_s)"
            return Failure(code=FailureCode.TIMEOUT, message=message, retryable=True)


def guarded(function: Callable[..., object]) -> Callable[..., object]:
    """`function`, returning `Raised` where it would raise."""

    def call(argument: object) -> object:
        try:
            return function(argument)
        except BaseException as error:  # noqa: BLE001 - the edge to code that is not ours, which may even exit
            return raised(error)

    return call


async def awaited(function: Callable[..., Awaitable[object]], argument: object) -> object:
    """What an async function returns, or `Raised`; cancellation passes through."""
    try:
        return await function(argument)
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - the edge to code that is not ours
        return raised(error)


def raised(error: BaseException) -> Raised:
    """Note a fault of the user's code, with its traceback."""
    logger.error("the reward function raised", exc_info=error)
    return Raised(error)


def one_each(returned: object, num_samples: int) -> Sequence[object]:
    """A batched function's return value as one entry per sample."""
    if isinstance(returned, Raised | Failure):
        return [returned] * num_samples
    try:
        values = list(cast(Sequence[object], returned))
    except TypeError:
        values = []
        found = f"{type(returned).__name__}, which is no sequence,"
    else:
        found = f"{len(values)} scores"
    if len(values) == num_samples:
        return values
    message = f"the batched reward returned {found} for {num_samples} samples"
    return [Failure(code=FailureCode.INTERNAL, message=message)] * num_samples


def to_outcome(returned: object, sample: RewardSample, description: RewardDescription) -> Reward | Failure:
    """The outcome that a function's return value stands for."""
    if isinstance(returned, Failure):
        return returned
    if isinstance(returned, Raised):
        return _internal(f"the reward raised {type(returned.error).__name__}: {returned.error}")
    try:
        reward = returned if isinstance(returned, Reward) else Reward(value=_number(returned))
        fault = fault_in_reward(reward, description=description, completion=sample.completion)
    except (TypeError, ValueError, OverflowError):
        return _internal(f"the reward returned {returned!r:.80}; it must return a float, a Reward or a Failure")
    return reward if fault is None else _internal(fault)


def _number(returned: object) -> float:
    """A number of any library as a float; text is none, although float() would read it."""
    if type(returned) is float:
        return returned
    if not hasattr(returned, "__float__"):
        raise TypeError(returned)
    return float(cast(SupportsFloat, returned))


def _internal(message: str) -> Failure:
    return Failure(code=FailureCode.INTERNAL, message=message)
