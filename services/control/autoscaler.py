"""How many rollout workers a run should have, from how long the learner waits for them.

Pure; it must not know how workers start. Invariants: what it changes lies within the bounds, also where workers that
were given up left fewer; it changes by one at a time, or to the lowest bound, and only after as many steps as settle
the last change, so that it cannot swing.
"""

from pydantic import Field

from rollout_workers.config import RolloutConfig
from services.contracts.settings import Section


class AutoscaleConfig(Section):
    """Adds and drains rollout workers while a run goes on, within rollout.min_workers and rollout.max_workers."""

    enabled: bool = False
    """Let the run choose its number of rollout workers."""
    target_learner_wait: float = Field(default=0.1, gt=0, lt=1)
    """Share of a step that the learner may wait for rollouts: above it a worker is added."""
    spare_factor: float = Field(default=0.25, gt=0, lt=1)
    """A worker is drained when the learner waits less than this part of the target, as the workers idle then."""
    settle_steps: int = Field(default=5, ge=1)
    """Steps after a change before the next one; the wait is their mean."""


class Autoscaler:
    """Looks at each step; used with `max_staleness` above 0, since a synchronous learner always waits."""

    def __init__(self, config: AutoscaleConfig, bounds: RolloutConfig) -> None:
        self._config = config
        self._bounds = bounds
        self._waits: list[float] = []

    def decide(self, *, learner_wait: float, num_workers: int, num_serving: int, reward_wait: float = 0.0) -> int:
        """How many workers there should be.

        Args:
            learner_wait: share of the last step in which the learner waited, from 0 to 1.
            reward_wait: likewise, in which scoring waited for a reward service that did not answer. Where that is
                most of the learner's wait, the step says nothing of the workers.
            num_workers: how many there should be up to now.
            num_serving: how many of them serve; while some are still on their way nothing changes.
        """
        if not self._config.enabled:
            return num_workers
        if num_serving != num_workers:
            self._waits.clear()
            return num_workers
        if reward_wait > learner_wait / 2:
            return num_workers
        self._waits.append(learner_wait)
        if len(self._waits) < self._config.settle_steps:
            return num_workers
        mean = sum(self._waits) / len(self._waits)
        self._waits.clear()
        if mean > self._config.target_learner_wait:
            return min(max(num_workers + 1, self._bounds.min_workers), self._bounds.max_workers)
        if mean < self._config.target_learner_wait * self._config.spare_factor:
            return min(num_workers, max(num_workers - 1, self._bounds.min_workers))
        return num_workers
