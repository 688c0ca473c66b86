"""All learner ranks, acting as one.

It must not know what a rank computes. Invariants: every rank gets the same calls with the same arguments in the same
order, because each call is a collective; the failure of one rank fails the call at once, because the others may wait
for it for ever: with that rank's own error, or as `LearnerLost` when it died or stopped answering.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ppo_learner.optimizer_config import OptimizerConfig
from services.contracts.errors import CheckpointError, DeadlineExceeded, LearnerLost, TriremeError, WorkerLost
from services.contracts.preference_example import PreferenceExample
from services.contracts.records import Demonstration, LearnerReport, Publication, ScoredGroup, WeightedDemonstrations
from services.contracts.reward_example import RewardExample
from services.contracts.settings import ModelConfig
from services.control.actor import Actor, files_below
from services.control.cluster import put

Examples = Sequence[Demonstration] | Sequence[RewardExample] | Sequence[PreferenceExample]
"""What a supervised learner learns from."""
_PULSE_EVERY_S = 2.0
"""Pause between two looks at whether a rank that works is alive."""
_LOOK_EVERY_S = 0.5
_NEWS_OF_A_DEATH_S = 3.0
"""How long after an unforeseen error of one rank another's death may become known, of which it would be the echo."""


class LearnerGroup:
    """Implements the `Learner` Protocol over one process for each rank.

    Args:
        ranks: the ranks' processes, rank 0 first.
        start_timeout_s: deadline for every rank to be ready.
        timeout_s: deadline of each call.
        pulse_timeout_s: longest silence of a rank's process during a call.
        generation: how often the learner was started anew from a checkpoint; goes into what it publishes.
        around_step: entered for each step; frees a GPU that others share, for as long.
        seen_within_s: how long what another machine wrote may take to appear on this one, as network storage is slow to
            look again.
    """

    def __init__(
        self,
        ranks: Sequence[Actor],
        *,
        start_timeout_s: float,
        timeout_s: float,
        pulse_timeout_s: float,
        generation: int = 0,
        around_step: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
        seen_within_s: float = 60.0,
    ) -> None:
        self._ranks = ranks
        self._start_timeout_s = start_timeout_s
        self._timeout_s = timeout_s
        self._pulse_timeout_s = pulse_timeout_s
        self.generation = generation
        self._around_step = around_step
        self._seen_within_s = seen_within_s

    async def ready(self) -> None:
        """Wait until every rank has loaded its model."""
        await self._gather([rank.make(timeout_s=self._start_timeout_s) for rank in self._ranks])

    async def step(
        self, batch: Sequence[ScoredGroup] | Examples, demonstrations: WeightedDemonstrations | None = None
    ) -> LearnerReport:
        async with self._around_step():
            beside = () if demonstrations is None else (put(demonstrations),)
            report: LearnerReport = await self._call("step", put(list(batch)), *beside)
        return report

    async def evaluate(self, examples: Examples) -> dict[str, float]:
        """The metrics of a step on other examples, without learning them; of a supervised learner only."""
        metrics: dict[str, float] = await self._call("evaluate", put(list(examples)))
        return metrics

    async def answers(self, examples: Examples) -> list[float]:
        """What the network says of all completions or steps, example after example: scores, or logprobs of a policy."""
        scores: list[float] = await self._call("answers", put(list(examples)))
        return scores

    async def read(self, model: ModelConfig, learner: OptimizerConfig) -> None:
        """Give up what was trained, and take up the weights of another model; of a supervised learner only."""
        await self._call("read", model, learner)

    async def publish(self, version: int) -> Publication:
        publication: Publication = await self._call("publish", version)
        return replace(publication, manifest=replace(publication.manifest, generation=self.generation))

    async def save(self, folder: Path) -> None:
        await self._write("save", folder)

    async def load(self, folder: Path) -> None:
        await self._call("load", folder)

    async def export(self, folder: Path) -> None:
        await self._write("export", folder)

    async def kill(self, *, timeout_s: float) -> None:
        """End every rank, frozen or not; their rooms are then free for new ones. Raises `DeadlineExceeded`."""
        await asyncio.gather(*(rank.kill(timeout_s=timeout_s) for rank in self._ranks))

    async def _write(self, method: str, folder: Path) -> None:
        """Have every rank write below a folder, and wait until all of it is here, too.

        Raises:
            CheckpointError: what a rank wrote is not to be seen from here.
        """
        await self._call(method, folder)
        timeout_s = self._pulse_timeout_s
        written = await self._gather([rank.files(folder, timeout_s=timeout_s) for rank in self._ranks])
        wanted = {item for files in written for item in files.items()}
        deadline = time.monotonic() + self._seen_within_s
        while missing := wanted - (await asyncio.to_thread(files_below, folder)).items():
            if time.monotonic() > deadline:
                raise CheckpointError(
                    f"the learner wrote {min(missing)[0]} below {folder.absolute()} on its machine, and on this one it "
                    f"did not appear for {self._seen_within_s:g} s; put run.dir on storage that all machines share"
                )
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _call(self, method: str, *args: object) -> Any:  # Any: rank 0's result
        return (await self._gather([self._answer(rank, method, *args) for rank in self._ranks]))[0]

    async def _answer(self, rank: Actor, method: str, *args: object) -> Any:  # Any: as in `_call`
        """One rank's answer; while it works, its process must show that it is alive."""
        call = asyncio.ensure_future(rank.call(method, *args, timeout_s=self._timeout_s))
        try:
            while not (await asyncio.wait([call], timeout=_PULSE_EVERY_S))[0]:
                await rank.pulse(timeout_s=self._pulse_timeout_s)
            return await call
        finally:
            call.cancel()

    async def _gather(self, answers: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:  # Any: as in `_call`
        calls = [asyncio.ensure_future(answer) for answer in answers]
        try:
            return await asyncio.gather(*calls)
        except (WorkerLost, DeadlineExceeded) as error:
            raise _learner_lost(error) from error
        except TriremeError as error:
            # An error without a name of its own is what a collective throws when another rank has died.
            if type(error) is TriremeError and (loss := await _loss_among(calls)):
                raise _learner_lost(loss) from error
            raise
        finally:
            for call in calls:
                call.cancel()


def _learner_lost(error: TriremeError) -> LearnerLost:
    return LearnerLost(f"the learner lost a rank: {error}")


async def _loss_among(calls: Sequence[asyncio.Future[Any]]) -> WorkerLost | None:  # Any: as in `_call`
    """The first death among the ranks that is known within a short time."""
    await asyncio.wait(calls, timeout=_NEWS_OF_A_DEATH_S)
    errors = [call.exception() for call in calls if call.done() and not call.cancelled()]
    return next((error for error in errors if isinstance(error, WorkerLost)), None)
