"""The loop: admit, sample, score, learn, publish.

    prompts ── admit ──▶ sample ──▶ score ──▶ buffer ── B groups ──▶ learn ──▶ publish
                 ▲    (one task for each prompt, side by side)                    │
                 └──────────────────────── version n + 1 ────────────────────────┘

It knows only the Protocols of `services.contracts.interfaces`, holds no tensors, and does no I/O beyond the ledger.
Who waits on whom: a prompt's task waits for a worker and then for the reward service; the loop waits for B accepted
groups, then for the learner, then for every worker's receipt of the new version. Each of these waits has a deadline in
the part that answers it.

Invariants: every admitted prompt ends exactly once in the ledger; what is trained does not depend on the order in which
workers finish; with `max_staleness = 0` nothing is sampled while the learner works.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from rollout_workers.prompts import PromptStream
from services.contracts.errors import SampleNotScorable
from services.contracts.interfaces import Learner, RewardScorer, RolloutSource
from services.contracts.records import (
    Failure,
    LearnerReport,
    Prompt,
    Reward,
    RewardSample,
    RolloutGroup,
    SampleRequest,
    Sampling,
    ScoredGroup,
    SyncReceipt,
)
from services.control.admission import AdmissionRule
from services.control.ledger import Ledger
from services.control.rollout_buffer import RolloutBuffer
from services.control.step_clock import StepClock


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One finished step: what was trained, what the learner measured, who serves the new version, and the seconds."""

    number: int
    groups: Sequence[ScoredGroup]
    report: LearnerReport
    receipts: Sequence[SyncReceipt]
    staleness: Sequence[int]
    seconds: dict[str, float]


class Controller:
    """Runs the loop on whatever implements the Protocols.

    Args:
        step: steps already trained, when a run resumes; it is also the policy version.
        max_failed_prompts: prompts that may fail for good before the run stops with `SampleNotScorable`.

    Attributes:
        version: the policy version that the workers serve.
        trained_steps: steps that the learner has made; above `version` while new weights are on their way.
    """

    def __init__(
        self,
        *,
        prompts: PromptStream,
        rollouts: RolloutSource,
        rewards: RewardScorer,
        learner: Learner,
        ledger: Ledger,
        admission: AdmissionRule,
        sampling: Sampling,
        step: int = 0,
        max_failed_prompts: int = 0,
    ) -> None:
        self._prompts = prompts
        self._rollouts = rollouts
        self._rewards = rewards
        self._learner = learner
        self._ledger = ledger
        self._admission = admission
        self._sampling = sampling
        self._max_failed_prompts = max_failed_prompts
        self._buffer = RolloutBuffer(capacity=(admission.max_staleness + 2) * admission.prompts_per_step)
        self._tasks: set[asyncio.Task[None]] = set()
        self._clock = StepClock()
        self.version = step
        self.trained_steps = step

    async def steps(self, num_steps: int) -> AsyncGenerator[Step, None]:
        """Train up to step `num_steps`, yielding each step once its weights are served.

        Raises:
            TriremeError: whatever stopped a part; tasks under way are cancelled first.
        """
        try:
            while self.version < num_steps:
                self._admit()
                groups = await self._collect()
                staleness = [self.version - group.group.lowest_policy_version for group in groups]
                with self._clock.phase("learning"):
                    report = await self._learner.step(groups)
                self.trained_steps += 1
                self._end(groups)
                receipts = await self.publish(self.version + 1)
                yield Step(
                    number=self.version,
                    groups=groups,
                    report=report,
                    receipts=receipts,
                    staleness=staleness,
                    seconds=self._clock.lap(),
                )
                self._clock.lap()  # What the caller does between two steps belongs to neither.
        finally:
            await self._cancel()

    async def publish(self, version: int) -> Sequence[SyncReceipt]:
        """Publish the learner's weights as `version` and wait until every worker serves them."""
        with self._clock.phase("sync"):
            publication = await self._learner.publish(version)
            self._ledger.note("published", version=version, checksums=list(publication.manifest.checksums))
            receipts = await self._rollouts.load_weights(publication)
        for receipt in receipts:
            self._ledger.note("synced", worker=receipt.worker, version=version, canary=receipt.canary_error)
        self.version = version
        return receipts

    def _admit(self) -> None:
        room = self._admission.room(
            accepted=self._ledger.num_accepted, running=self._ledger.num_running, version=self.version
        )
        for _ in range(room):
            admission = self._prompts.position
            prompt = self._prompts.draw()
            self._ledger.admit(prompt.id, version=self.version)
            self._tasks.add(asyncio.create_task(self._produce(admission, prompt), name=f"prompt {prompt.id}"))

    async def _produce(self, admission: int, prompt: Prompt) -> None:
        with self._clock.phase("sampling"):
            group = await self._rollouts.sample(SampleRequest(prompt=prompt, sampling=self._sampling))
        with self._clock.phase("scoring"):
            outcomes = await self._rewards.score(to_reward_samples(group))
        failure = next((outcome for outcome in outcomes if isinstance(outcome, Failure)), None)
        if failure is not None:
            return self._fail(prompt, failure)
        rewards = tuple(outcome for outcome in outcomes if isinstance(outcome, Reward))
        self._ledger.accept(prompt.id)
        return self._buffer.put(admission, ScoredGroup(group=group, rewards=rewards))

    def _fail(self, prompt: Prompt, failure: Failure) -> None:
        self._ledger.end(prompt.id, "failed", reason=f"{failure.code}: {failure.message}")
        if self._ledger.counts["failed"] > self._max_failed_prompts:
            raise SampleNotScorable(
                f"{self._ledger.counts['failed']} prompts could not be scored and train.max_failed_prompts is "
                f"{self._max_failed_prompts}; the last is row {prompt.row}: {failure.message} ({failure.code})"
            )

    async def _collect(self) -> list[ScoredGroup]:
        """Wait until a whole batch is accepted; a failed prompt makes room for another."""
        batch = self._admission.prompts_per_step
        while len(self._buffer) < batch:
            done, self._tasks = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            failures = [failure for task in done if (failure := task.exception())]
            if failures:
                raise failures[0]
            self._admit()
        return self._buffer.take(batch)

    def _end(self, groups: Sequence[ScoredGroup]) -> None:
        for group in groups:
            self._ledger.end(group.group.prompt.id, "trained", step=self.version + 1)

    async def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def to_reward_samples(group: RolloutGroup) -> list[RewardSample]:
    """The group's completions as a reward service sees them."""
    template = RewardSample(
        id="", completion="", prompt=group.prompt.text, messages=group.prompt.messages, reference=group.prompt.reference
    )
    return [
        replace(
            template,
            id=f"{rollout.prompt_id}/{rollout.sample_index}",
            completion=rollout.completion,
            token_ids=tuple(rollout.token_ids[rollout.num_prompt_tokens :]),
            policy_version=max(rollout.policy_versions),
            finish_reason=rollout.finish_reason,
        )
        for rollout in group.rollouts
    ]
