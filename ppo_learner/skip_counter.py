"""Counts updates that were skipped for a gradient that is not finite, and stops the run after too many in a row.

It must not know networks or losses. Invariant: every rank counts the same, because an update is skipped by all or none.
"""

from collections.abc import Mapping

from ppo_learner.engine import Update
from services.contracts.errors import NonFiniteStep


class SkipCounter:
    """The count and its limit.

    Attributes:
        in_a_row: updates skipped since the last one that moved the weights; part of the checkpoint.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.in_a_row = 0

    def count(self, updates: Mapping[str, Update]) -> None:
        """Note the updates of each network at one optimizer step. Raises `NonFiniteStep` at the limit."""
        if all(update.applied for update in updates.values()):
            self.in_a_row = 0
            return
        self.in_a_row += 1
        if self.in_a_row >= self._limit:
            norms = ", ".join(f"{name} {update.gradient_norm}" for name, update in updates.items())
            raise NonFiniteStep(
                f"{self.in_a_row} updates in a row had a gradient that is not finite (norms: {norms}) and changed no "
                "weight; resume from the last checkpoint with a lower learner.lr, or look at the rewards"
            )
