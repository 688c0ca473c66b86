"""Simulated machines: a clock, nodes that share their cores, and engines in which every sequence gains a token a turn.

An iteration of n running sequences takes `fixed_s + n · per_sequence_s`: a small batch is bound by reading the weights,
a large one by arithmetic. It must not know prompts, versions or the loop. Invariants: a sequence of T tokens ends after
exactly T iterations in which it ran, however the batch around it changed; callbacks come as events of their own.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

Order = TypeVar("Order")
Action = Callable[[], None]
_ALMOST, _ALMOST_S = 1e-6, 1e-9
"""What rounding may leave of a token, and of a second."""


class Clock:
    """Virtual time, in seconds; events at the same time happen in the order in which they were set."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Action]] = []
        self._num_ever = 0

    def after(self, seconds: float, action: Action) -> None:
        self._num_ever += 1
        heapq.heappush(self._events, (self.now + seconds, self._num_ever, action))

    def advance(self) -> None:
        """Let the next event happen."""
        self.now, _, action = heapq.heappop(self._events)
        action()


class Node:
    """One machine: when its engines want more cores than it has, all of them slow down alike."""

    def __init__(self, num_cores: float = math.inf) -> None:
        self._num_cores = num_cores
        self.engines: list[Engine[Any]] = []  # Any: whatever each engine's orders are
        self.speed = 1.0

    def share(self) -> None:
        if math.isinf(self._num_cores):
            return
        wanted = sum(engine.busy for engine in self.engines)
        speed = min(1.0, self._num_cores / wanted) if wanted else 1.0
        if speed != self.speed:
            for engine in self.engines:
                engine.settle()
            self.speed = speed
            for engine in self.engines:
                engine.run_on()


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """An engine's speed: the seconds of an iteration, and how many sequences may run at once."""

    fixed_s: float
    per_sequence_s: float
    max_concurrent: int = 256


class Engine(Generic[Order]):
    """Runs sequences, one core's work, on a node.

    Args:
        on_start: told of a sequence's order when it leaves the queue.
        on_end: told of it when its last token is there.
    """

    def __init__(
        self,
        clock: Clock,
        node: Node,
        decoding: Decoding,
        *,
        on_start: Callable[[Order], None],
        on_end: Callable[[Order], None],
    ) -> None:
        self._clock = clock
        self._node = node
        self._decoding = decoding
        self._on_start = on_start
        self._on_end = on_end
        self._running: list[tuple[float, int, Order]] = []
        self._waiting: deque[tuple[int, Order]] = deque()
        self._load: tuple[float, Action] | None = None
        self._loading = False
        self._iterations = 0.0
        self._settled_at = 0.0
        self._rate = 0.0
        self._num_ever = self._wake = 0
        node.engines.append(self)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def busy(self) -> bool:
        return self._loading or bool(self._running)

    def add(self, orders: Iterable[tuple[int, Order]]) -> None:
        """Queue sequences, each with its length in tokens."""
        self.settle()
        self._waiting.extend(orders)
        self.run_on()
        self._node.share()

    def load(self, seconds: float, then: Action, *, in_flight: bool) -> None:
        """Stand still for `seconds` of work, at once or when all that runs has ended; then call `then`."""
        assert self._load is None, "one load at a time"
        self.settle()
        self._load, self._loading = (seconds, then), in_flight
        self.run_on()
        self._node.share()

    def settle(self) -> None:
        """Count what was done since the last change."""
        done = (self._clock.now - self._settled_at) * self._rate
        self._settled_at = self._clock.now
        if self._loading:
            assert self._load is not None
            self._load = (self._load[0] - done, self._load[1])
            return
        self._iterations += done
        while self._running and self._running[0][0] <= self._iterations + _ALMOST:
            self._clock.after(0.0, partial(self._on_end, heapq.heappop(self._running)[2]))

    def run_on(self) -> None:
        """Start what may start, and wake up when the next thing ends; call it after `settle`."""
        if self._load is not None and not self._running:
            self._loading = True
        if self._load is None:
            self._start_waiting()
        self._wake += 1
        if self._loading and self._load is not None:
            self._rate, left = self._node.speed, self._load[0]
        elif self._running:
            iteration_s = self._decoding.fixed_s + len(self._running) * self._decoding.per_sequence_s
            self._rate, left = self._node.speed / iteration_s, self._running[0][0] - self._iterations
        else:
            self._rate = 0.0
            return
        self._clock.after(max(0.0, left) / self._rate, partial(self._woken, self._wake))

    def _start_waiting(self) -> None:
        while self._waiting and len(self._running) < self._decoding.max_concurrent:
            length, order = self._waiting.popleft()
            self._num_ever += 1
            heapq.heappush(self._running, (self._iterations + length, self._num_ever, order))
            self._on_start(order)

    def _woken(self, wake: int) -> None:
        if wake != self._wake:
            return
        self.settle()
        if self._loading and self._load is not None and self._load[0] <= _ALMOST_S:
            then, self._load, self._loading = self._load[1], None, False
            then()  # Before anything starts, so that it starts under what was loaded.
        self.run_on()
        self._node.share()
