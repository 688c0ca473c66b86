"""Which workers crawl, and when one that did is tried again.

Pure; it must not know requests, and has no clock. Invariants: a worker is slow only in comparison with the others, so
that one at least is not; one that is slow is tried ever more rarely, because each trial may hold up a step.
"""

from dataclasses import dataclass
from statistics import median_low

SLOW = 3.0
"""How many times as long as the median of the workers a slow one takes for a token."""
LEAST_S = 1.0
"""What the last request of a slow one took at least: shorter ones are late by chance, and then all of a worker are."""
_MEMORY = 0.95
"""What a worker's earlier requests count beside a new one, token for token; with a slow one nothing. Much, as requests
wait for each other in an engine."""
FIRST_TRIAL = 100
"""Requests that other workers end until a slow one is tried again; for each further trial it takes twice as many."""


@dataclass(kw_only=True, slots=True)
class _Pace:
    seconds: float = 0.0
    num_tokens: float = 0.0
    token_s: float = 0.0
    last_s: float = 0.0
    is_compared: bool = False
    passed_over: int = 0
    until_trial: int = FIRST_TRIAL


class Paces:
    """What is known of the workers' speed."""

    def __init__(self) -> None:
        self._paces: dict[int, _Pace] = {}
        self._slow: frozenset[int] = frozenset()

    def learn(self, worker: int, *, seconds: float, num_tokens: int, others_ended: int) -> None:
        """A worker ended a request.

        Args:
            num_tokens: of its longest completion, 1 or more.
            others_ended: requests that the other workers ended meanwhile. Without any, what is known of them is of
                another time, when there was perhaps less to do.
        """
        for other in self._slow - {worker}:
            self._paces[other].passed_over += 1
        memory = 0.0 if self.is_slow(worker) else _MEMORY
        own = self._paces.setdefault(worker, _Pace())
        own.seconds = memory * own.seconds + seconds
        own.num_tokens = memory * own.num_tokens + num_tokens
        own.last_s = seconds
        own.is_compared = others_ended >= SLOW * (len(self._paces) - 1)
        own.token_s = own.seconds / own.num_tokens
        self._compare()
        if not self.is_slow(worker):
            own.until_trial = FIRST_TRIAL

    def forget(self, worker: int) -> None:
        """It is given nothing more."""
        if self._paces.pop(worker, None) is not None:
            self._compare()

    def is_slow(self, worker: int) -> bool:
        """Whether it takes `SLOW` times as long as is usual, and long enough to matter."""
        return worker in self._slow

    def is_wanted(self, worker: int) -> bool:
        """Whether to give it a request: it is not slow, or it is time to try it again."""
        return worker not in self._slow or self._paces[worker].passed_over >= self._paces[worker].until_trial

    def give(self, worker: int) -> None:
        """It was given a request, which for a slow one is a trial."""
        if self.is_slow(worker):
            pace = self._paces[worker]
            pace.passed_over, pace.until_trial = 0, 2 * pace.until_trial

    def _compare(self) -> None:
        usual_s = median_low(pace.token_s for pace in self._paces.values()) if self._paces else 0.0
        self._slow = frozenset(
            worker
            for worker, pace in self._paces.items()
            if pace.token_s >= SLOW * usual_s > 0 and pace.last_s >= LEAST_S and pace.is_compared
        )
