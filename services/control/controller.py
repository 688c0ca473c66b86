"""The loop: admit, sample, score, learn, publish.

    prompts ── admit ──▶ sample ──▶ score ──▶ buffer ── B groups ──▶ learn ──▶ publish ─┐
                 ▲    (one task for each prompt, side by side)                          │
                 └───────────── version n + 1, once every worker has it ────────────────┘

It knows only the Protocols of `services.contracts.interfaces`, holds no tensors, and decides nothing: `run_machine`
does. Who waits on whom: a prompt's task waits for a worker and then for the reward service; the loop waits for a batch,
then for the learner; the workers load new weights in the background, and the next publication waits for the last. Each
of these waits has a deadline in the part that answers it.

Invariants: every admitted prompt ends exactly once in the ledger; with `max_staleness = 0` nothing is sampled while the
learner works, and what is trained does not depend on the order in which workers finish; with more, sampling, learning
and weight loads overlap, and the machine keeps the bound.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from rollout_workers.prompts import PromptStream
from services.contracts.errors import SampleNotScorable, TriremeError
from services.contracts.interfaces import Learner, RewardScorer, RolloutSource
from services.contracts.records import (
    Failure,
    LearnerReport,
    Prompt,
    Publication,
    Reward,
    SampleRequest,
    Sampling,
    ScoredGroup,
    SyncReceipt,
    WeightedDemonstrations,
)
from services.control.ledger import Note
from services.control.reward_samples import to_reward_samples
from services.control.run_machine import RunMachine
from services.control.step_clock import PAUSED, StepClock
from services.transport.tasks import all_or_cancel
from services.transport.tracing import span


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One finished step: what was trained, what the learner measured, and the seconds.

    `filtered` are the groups that other prompts replaced, because their rewards were all the same; `receipts` are of
    the workers that took up new weights since the step before.
    """

    number: int
    groups: Sequence[ScoredGroup]
    filtered: Sequence[ScoredGroup]
    report: LearnerReport
    receipts: Sequence[SyncReceipt]
    staleness: Sequence[int]
    seconds: dict[str, float]

    @property
    def sampled(self) -> Sequence[ScoredGroup]:
        """Every group that was sampled for the step, trained or not."""
        return [*self.groups, *self.filtered]

    @property
    def learner_wait(self) -> float:
        """Share of the step in which the learner waited for groups."""
        return self.seconds.get("waiting", 0.0) / self.seconds["step"]


class Controller:
    """Runs the loop on whatever implements the Protocols.

    Args:
        prompts: where new prompts come from.
        machine: decides; its open work is taken up by `steps`.
        note: writes down what is published.
        greedy_baseline: whether the greedy answer to each prompt is sampled and scored beside its group.
        max_failed_prompts: prompts that may fail for good before the run stops with `SampleNotScorable`.
        prepare: what is done to every scored group before it is accepted.
        demonstrations: what the learner learns beside the rollouts of a step, by the number of steps before it.
        now: seconds on the clock that steps are timed by, which never goes back.

    Attributes:
        learner_is_free: held while the learner is ahead of what the caller of `steps` has seen; whoever else wants the
            learner, to save it, takes it in between.
        learner_is_sound: whether the learner is in the state that belongs to the machine's; not after it failed midway.
    """

    def __init__(
        self,
        *,
        prompts: PromptStream,
        rollouts: RolloutSource,
        rewards: RewardScorer,
        learner: Learner,
        machine: RunMachine,
        note: Note,
        sampling: Sampling,
        greedy_baseline: bool = False,
        max_failed_prompts: int = 0,
        prepare: Callable[[ScoredGroup], ScoredGroup] = lambda scored: scored,
        demonstrations: Callable[[int], WeightedDemonstrations | None] = lambda step: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._prompts = prompts
        self._rollouts = rollouts
        self._rewards = rewards
        self._learner = learner
        self._machine = machine
        self._note = note
        self._sampling = sampling
        self._greedy_baseline = greedy_baseline
        self._max_failed_prompts = max_failed_prompts
        self._prepare = prepare
        self._demonstrations = demonstrations
        self._tasks: set[asyncio.Task[None]] = set()
        self._sync: asyncio.Task[None] | None = None
        self._receipts: list[SyncReceipt] = []
        self._failure: BaseException | None = None
        self._unpublished: TriremeError | None = None
        self._changed = asyncio.Event()
        self._admits = False
        self._ends_pause = False
        self._clock = StepClock(now)
        self.learner_is_free = asyncio.Lock()
        self.learner_is_sound = True

    async def steps(self, num_steps: int) -> AsyncGenerator[Step, None]:
        """Train up to step `num_steps`, yielding each step; the last version is served when this ends.

        Raises:
            TriremeError: whatever stopped a part, once what was trained has been yielded; tasks under way are cancelled
                first.
        """
        try:
            self._admits = True
            self._clock.lap()  # What was before the first step is no part of it.
            self._take_up_open_work()
            while self._machine.trained_steps < num_steps:
                groups = await self._next_batch()
                if groups is None:
                    break
                async with self.learner_is_free:
                    self.learner_is_sound = False
                    with self._clock.phase("learning"):
                        beside = self._demonstrations(self._machine.trained_steps)
                        report = await self._learner.step(groups, beside)
                    filtered, staleness = self._machine.filtered, self._machine.trained(groups)
                    self.learner_is_sound = True
                    with suppress(TriremeError):  # What was trained is yielded first.
                        await self.publish(self._machine.trained_steps)
                    receipts, self._receipts = self._receipts, []
                    yield Step(
                        number=self._machine.trained_steps,
                        groups=groups,
                        filtered=filtered,
                        report=report,
                        receipts=receipts,
                        staleness=staleness,
                        seconds=self._clock.lap(),
                    )
                    self._clock.lap()  # What the caller does between two steps belongs to neither.
                if self._unpublished is not None:
                    raise self._unpublished
            await self.synced()
        finally:
            self._admits = False
            await self._cancel()

    async def publish(self, version: int) -> None:
        """Publish the learner's weights as `version`; the workers load them in the background, one at a time.

        Raises:
            TriremeError: why they are not published; `synced` raises it from then on.
        """
        try:
            await self.synced()
            with self._clock.phase("sync"):
                publication = await self._learner.publish(version)
            manifest = publication.manifest
            self._note("published", version=version, generation=manifest.generation, checksums=list(manifest.checksums))
        except TriremeError as error:
            self._unpublished = error
            raise
        self._sync = self._spawn(self._load(publication), name=f"sync of version {version}")

    async def synced(self) -> None:
        """Wait until every worker serves the newest weights. Raises what kept them from it."""
        if self._unpublished is not None:
            raise self._unpublished
        if self._sync is not None:
            await self._sync

    def wake(self) -> None:
        """Somebody changed the machine's phase: look again at what is to be done."""
        self._admit()
        self._changed.set()

    def end_pause(self) -> None:
        """From now on a pause is the end: `steps` waits for no step that a paused run would never make."""
        self._ends_pause = True
        self.wake()

    async def _next_batch(self) -> list[ScoredGroup] | None:
        """The groups to train next; None when a draining run has no more, or a pause is the end."""
        while True:
            if self._failure is not None:
                raise self._failure
            groups = self._machine.next_batch()
            is_paused = self._machine.phase == "paused"
            if groups is not None or self._machine.is_drained or (self._ends_pause and is_paused):
                return groups
            self._changed.clear()
            self._admit()
            assert self._tasks or is_paused, "nothing is under way, and nothing may be"
            with self._clock.phase(PAUSED if is_paused else "waiting"):
                await self._changed.wait()  # No deadline: each task under way has its own, and a pause has none.

    def _take_up_open_work(self) -> None:
        for position in self._machine.open_work.running:
            self._produce_later(position, self._prompts.at(position))

    def _admit(self) -> None:
        for _ in range(self._machine.room() if self._admits else 0):
            position = self._prompts.position
            prompt = self._prompts.at(position)
            self._machine.admit(position, prompt)
            self._prompts.draw()
            self._produce_later(position, prompt)

    def _produce_later(self, position: int, prompt: Prompt) -> None:
        self._spawn(self._produce(position, prompt), name=f"prompt {prompt.id}")

    async def _produce(self, position: int, prompt: Prompt) -> None:
        requests = self._requests(prompt)
        with span("prompt", {"trireme.prompt_id": prompt.id}):
            with span("sample"), self._clock.phase("sampling"):
                group, *greedy = await all_or_cancel(map(self._rollouts.sample, requests))
            with span("score"), self._clock.phase("scoring"):
                samples = [sample for sampled in (group, *greedy) for sample in to_reward_samples(sampled)]
                outcomes = await self._rewards.score(samples)
        failure = next((outcome for outcome in outcomes if isinstance(outcome, Failure)), None)
        if failure is not None:
            self._fail(position, prompt, failure)
        else:
            rewards = tuple(outcome for outcome in outcomes if isinstance(outcome, Reward))
            baseline = rewards[-1].value if greedy else None
            scored = ScoredGroup(group=group, rewards=rewards[: len(group.rollouts)], baseline=baseline)
            self._machine.accept(position, self._prepare(scored))
        self._admit()  # A prompt that failed, and a group that others replace, make room.

    def _requests(self, prompt: Prompt) -> list[SampleRequest]:
        """The prompt's group and, where the algorithm takes its reward as a baseline, the greedy answer.

        That has an id of its own: attempts at it are none at the group, and its reward is asked for in the same call.
        """
        group = SampleRequest(prompt=prompt, sampling=self._sampling)
        if not self._greedy_baseline:
            return [group]
        beside = replace(prompt, id=f"{prompt.id}/greedy")
        return [group, SampleRequest(prompt=beside, sampling=self._sampling.greedy)]

    def _fail(self, position: int, prompt: Prompt, failure: Failure) -> None:
        num_failed = self._machine.fail(position, prompt, f"{failure.code}: {failure.message}")
        if num_failed > self._max_failed_prompts:
            raise SampleNotScorable(
                f"{num_failed} prompts could not be scored and train.max_failed_prompts is "
                f"{self._max_failed_prompts}; the last is row {prompt.row}: {failure.message} ({failure.code})"
            )

    async def _load(self, publication: Publication) -> None:
        with self._clock.phase("sync"):
            self._receipts += await self._rollouts.load_weights(publication)
        self._machine.served(publication.manifest.version)
        self._admit()

    def _spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:  # Any: nobody sends to it
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()):
            self._failure = self._failure or failure
        self._changed.set()

    async def _cancel(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
