"""When a call to a reward service is made again, and when to give up.

It must not know gRPC or what the call does. Invariant: every wait is bounded. An outage is waited out for a time; an
answer that is wrong in itself is tried a number of times.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator

from services.transport.reward_settings import RewardClientConfig


class Outage(Exception):
    """No answer for now: retried until the time for outages is spent."""


class Refusal(Outage):
    """A setting here or there bars the way to the server. Before a run that is the user's to mend; within one it is
    waited out, as certificates and tokens may be replaced meanwhile."""


class CallFault(Exception):
    """The service failed at the call: retried until the attempts are spent."""


class SampleFault(Exception):
    """Some samples of an answered call failed retryably: retried until the attempts are spent."""


class Patience:
    """How long one call goes on: outages by the time since they began, faults by their number.

    Args:
        budget_s: time for outages; `config.unavailable_budget_s` where it is not given.
    """

    def __init__(self, config: RewardClientConfig, budget_s: float | None = None) -> None:
        self.budget_s = config.unavailable_budget_s if budget_s is None else budget_s
        self.outage_s = 0.0
        self._config = config
        self._num_faults = 0
        self._out_since: float | None = None

    async def retry(self, attempt: Callable[[], Awaitable[None]], on_retry: Callable[[BaseException], None]) -> None:
        """Make `attempt` until it returns; `on_retry` is told why before each pause.

        Raises:
            Outage, CallFault, SampleFault: what the last attempt raised, when patience is spent.
        """

        pauses_s = self._pauses_s()
        while True:
            try:
                return await attempt()
            except (Outage, CallFault, SampleFault) as error:
                if self._is_spent(error):
                    raise
                on_retry(error)
            await asyncio.sleep(next(pauses_s))

    def _pauses_s(self) -> Iterator[float]:
        """Random, so that callers which failed together do not come back together."""
        longest_s = self._config.backoff_initial_s
        while True:
            yield random.uniform(0.0, longest_s)
            longest_s = min(2 * longest_s, self._config.backoff_max_s)

    def _is_spent(self, error: Exception) -> bool:
        if not isinstance(error, Outage):
            self._out_since = None
            self._num_faults += 1
            return self._num_faults >= self._config.max_attempts
        now = time.monotonic()
        self._out_since = now if self._out_since is None else self._out_since
        self.outage_s = now - self._out_since
        return self.outage_s >= self.budget_s
