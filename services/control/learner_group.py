"""All learner ranks, acting as one.

It must not know what a rank computes. Invariant: every rank gets the same calls with the same arguments in the same
order, because each call is a collective; the failure of one rank fails the call, with that rank's own error.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.contracts.records import Demonstration, LearnerReport, Publication, ScoredGroup
from services.control.cluster import Actor, put


class LearnerGroup:
    """Implements the `Learner` Protocol over one process for each rank.

    Args:
        ranks: the ranks' processes, rank 0 first.
        start_timeout_s: deadline for every rank to be ready.
        timeout_s: deadline of each call.
    """

    def __init__(self, ranks: Sequence[Actor], *, start_timeout_s: float, timeout_s: float) -> None:
        self._ranks = ranks
        self._start_timeout_s = start_timeout_s
        self._timeout_s = timeout_s

    async def ready(self) -> None:
        """Wait until every rank has loaded its model."""
        await self._call("start", timeout_s=self._start_timeout_s)

    async def step(self, batch: Sequence[ScoredGroup] | Sequence[Demonstration]) -> LearnerReport:
        report: LearnerReport = await self._call("step", put(list(batch)))
        return report

    async def publish(self, version: int) -> Publication:
        publication: Publication = await self._call("publish", version)
        return publication

    async def save(self, folder: Path) -> None:
        await self._call("save", folder)

    async def load(self, folder: Path) -> None:
        await self._call("load", folder)

    async def export(self, folder: Path) -> None:
        await self._call("export", folder)

    async def _call(self, method: str, *args: object, timeout_s: float | None = None) -> Any:  # Any: rank 0's result
        deadline = timeout_s or self._timeout_s
        results = await asyncio.gather(*(rank.call(method, *args, timeout_s=deadline) for rank in self._ranks))
        return results[0]
