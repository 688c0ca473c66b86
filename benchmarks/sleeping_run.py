"""The real control plane (controller, machine, ledger, buffer, pool) on workers and a learner that only sleep.

What sleeps is labelled so wherever its figures are shown. It must not know what is measured. Invariant: nothing of the
loop is replaced; only engines, learner and reward service are.
"""

import asyncio
import random
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path

from rollout_workers.pool import MANY, RolloutPool
from rollout_workers.prompts import PromptStream, RowOrder
from services.contracts.errors import WorkerLost
from services.contracts.records import (
    NOT_SAMPLED,
    LearnerReport,
    Publication,
    Rollout,
    RolloutGroup,
    SampleRequest,
    Sampling,
    ScoredGroup,
    SyncReceipt,
    WeightedDemonstrations,
)
from services.control.admission import AdmissionRule
from services.control.controller import Controller, Step
from services.control.event_log import EventLog
from services.control.ledger import Ledger
from services.control.run_machine import RunMachine
from tests.fakes import FakeLearner, FakeRewards, make_prompt, make_rollout

Seconds = Callable[[], float]
NUM_ROWS = 1000
TOKENS = 90
"""Completion tokens of every sample: the mean of the reference case."""


class SleepingWorker:
    """Samples groups of `TOKENS` tokens in `seconds()` each, any number of them at once.

    Attributes:
        killed: once set, the worker is gone, with all that it samples.
        cpu_s: processor time spent on making rollouts up, which is no cost of the control plane.
    """

    def __init__(self, number: int, *, seconds: Seconds, load_s: Seconds) -> None:
        self._number = number
        self._seconds = seconds
        self._load_s = load_s
        self._version = NOT_SAMPLED
        self.killed = asyncio.Event()
        self.cpu_s = 0.0

    async def sample(self, request: SampleRequest) -> RolloutGroup:
        first = self._version
        with suppress(TimeoutError):
            await asyncio.wait_for(self.killed.wait(), self._seconds())
            raise WorkerLost("killed")
        began = time.process_time()
        group = RolloutGroup(
            prompt=request.prompt,
            rollouts=tuple(self._rollout(request, index, first) for index in range(request.sampling.num_samples)),
        )
        self.cpu_s += time.process_time() - began
        return group

    async def load_weights(self, publication: Publication) -> SyncReceipt:
        await asyncio.sleep(self._load_s())
        self._version = publication.manifest.version
        return SyncReceipt(
            worker=self._number, version=self._version, canary_error=0.0, fetch_s=0.0, load_s=0.0, verify_s=0.0
        )

    async def health(self) -> int:
        return self._version

    def _rollout(self, request: SampleRequest, index: int, first: int) -> Rollout:
        """Its first token is of the version served when it began, the others of that served now."""
        rollout = make_rollout(request.prompt, sample_index=index, completion_ids=[7] * TOKENS, version=self._version)
        versions = array("i", rollout.policy_versions)
        versions[rollout.num_prompt_tokens] = first
        return replace(rollout, policy_versions=versions)


class SleepingLearner(FakeLearner):
    """A learner whose step takes `seconds()`; it keeps nothing of what it was given."""

    def __init__(self, seconds: Seconds) -> None:
        super().__init__()
        self._seconds = seconds
        self._steps = 0

    async def step(
        self, groups: Sequence[ScoredGroup], demonstrations: WeightedDemonstrations | None = None
    ) -> LearnerReport:
        await asyncio.sleep(self._seconds())
        self._steps += 1
        return LearnerReport(step=self._steps, metrics={})


async def run_steps(
    folder: Path,
    workers: Sequence[SleepingWorker],
    learner: SleepingLearner,
    rule: AdmissionRule,
    *,
    num_steps: int,
    max_outstanding: int = MANY,
    after_step: Callable[[int], None] = lambda step: None,
) -> list[Step]:
    """Train `num_steps` steps of 8 samples a prompt; the run's events are in `folder`.

    Args:
        max_outstanding: most groups that one worker samples at a time.
        after_step: called with the number of each step.
    """
    prompts = [make_prompt(row) for row in range(NUM_ROWS)]
    with EventLog(folder) as log:
        machine = RunMachine(rule, Ledger(log.note))
        controller = Controller(
            prompts=PromptStream(prompts, RowOrder(NUM_ROWS, seed=0, shuffle=True)),
            rollouts=RolloutPool(workers, max_outstanding=max_outstanding),
            rewards=FakeRewards(),
            learner=learner,
            machine=machine,
            note=log.note,
            sampling=Sampling(num_samples=8, max_completion_tokens=TOKENS),
        )
        await controller.publish(0)
        await controller.synced()
        done: list[Step] = []
        async with aclosing(controller.steps(num_steps)) as steps:
            async for step in steps:
                done.append(replace(step, groups=()))
                after_step(step.number)
        return done


def exponential(draw: random.Random, mean: float) -> Seconds:
    """Random seconds with a long tail."""
    return lambda: draw.expovariate(1 / mean)
