"""The seams: what the controller needs of each part, and what a transport must offer.

The controller knows these Protocols, never the classes behind them; `tests/fakes.py` implements each.
Every method that waits takes or has a deadline and raises `DeadlineExceeded` past it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from services.contracts.records import (
    Failure,
    LearnerReport,
    Publication,
    Reward,
    RewardSample,
    RolloutGroup,
    SampleRequest,
    ScoredGroup,
    SyncReceipt,
    WeightedDemonstrations,
    WeightManifest,
)
from services.contracts.run_status import RunStatus


class RolloutSource(Protocol):
    """A pool of rollout workers."""

    async def sample(self, request: SampleRequest) -> RolloutGroup:
        """Sample one group on the least loaded worker. Raises `WorkerLost`, `DeadlineExceeded`."""
        ...

    async def load_weights(self, publication: Publication) -> Sequence[SyncReceipt]:
        """Have every worker pull, load and verify a version before it serves again. Raises `WeightSyncError`."""
        ...


class RewardScorer(Protocol):
    """A reward service, seen from the controller."""

    async def score(self, samples: Sequence[RewardSample]) -> Sequence[Reward | Failure]:
        """One outcome per sample, in order. Raises `RewardUnavailable`, `RewardContractError`."""
        ...


class Learner(Protocol):
    """All ranks of the learner, acting as one."""

    async def step(
        self, groups: Sequence[ScoredGroup], demonstrations: WeightedDemonstrations | None = None
    ) -> LearnerReport:
        """One update of the policy (and critic) on whole groups, and of the policy on demonstrations beside them.

        Raises `NonFiniteStep`, `WorkerLost`.
        """
        ...

    async def publish(self, version: int) -> Publication:
        """Pack the current policy as `version`, with checksums and canary."""
        ...

    async def save(self, folder: Path) -> None:
        """Write the full learner state of every rank below `folder`."""
        ...

    async def load(self, folder: Path) -> None:
        """Restore what `save` wrote. Raises `CheckpointError`."""
        ...

    async def export(self, folder: Path) -> None:
        """Write the policy and its tokenizer in Hugging Face format."""
        ...


class WeightTransport(Protocol):
    """Moves packed weights from the learner to any number of workers, each of which pulls on its own."""

    def publish(self, manifest: WeightManifest, buckets: Sequence[memoryview]) -> Publication:
        """Make a version available; the one published before the last may be dropped."""
        ...

    def fetch(self, publication: Publication, *, timeout_s: float) -> Sequence[memoryview]:
        """The buckets' bytes, not yet verified, without a copy where possible. Raises `DeadlineExceeded`."""
        ...


class RunControl(Protocol):
    """What an operator may ask of a live run. Each call returns once the run has taken it up."""

    def status(self) -> RunStatus:
        """The run as it is now."""
        ...

    async def scale(self, num_workers: int) -> None:
        """Have so many rollout workers from now on; joining and draining go on after this returns.

        Raises `UserError` when the number is out of bounds, naming them, or the cluster has no room.
        """
        ...

    async def pause(self) -> None:
        """Admit and train nothing more until `resume`; what is being sampled or trained comes to its end."""
        ...

    async def resume(self) -> None:
        """Go on after `pause`."""
        ...

    async def checkpoint(self, *, timeout_s: float) -> Path:
        """Commit the newest whole step; returns where it lies. Raises `CheckpointError`, `DeadlineExceeded`."""
        ...

    async def drain(self) -> None:
        """Admit nothing more, train what can still make whole steps, checkpoint, and end the run with exit code 0."""
        ...
