"""Labels for the steps of a completion by Monte Carlo: how often completions that begin so end well.

For each step the prefix up to its end is continued K times by the policy, and the share that ends in a right answer is
its label (Math-Shepherd, Wang et al. 2023, arXiv 2312.08935). It must not know where completions come from or where
labels go. Invariant: a prefix is the sampled tokens themselves, never text that was tokenised anew.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from reward_server.reward_models.reading import step_spans
from services.contracts.errors import SampleNotScorable
from services.contracts.interfaces import RewardScorer, RolloutSource
from services.contracts.records import Failure, Prompt, Reward, Rollout, RolloutGroup, SampleRequest, Sampling
from services.contracts.settings import Section
from services.control.evaluate_config import HeldOutConfig
from services.control.evaluation import is_correct
from services.control.reward_samples import to_reward_samples
from services.control.step_tokens import Decode, GrowingText


class StepLabelsConfig(Section):
    """How steps are labelled; what is right, `evaluate.component` and `evaluate.threshold` say."""

    completion_field: str | None = None
    """Column of data.prompts with a completion to label, or a list of them; by default the policy samples
    rollout.samples_per_prompt completions."""
    separator: str = Field(default="\n", min_length=1)
    """What ends a step, and belongs to it; several in a row end one step, as where a process reward is served."""
    continuations: int = Field(default=8, ge=1)
    """Completions sampled from the end of each step."""
    kind: Literal["soft", "hard"] = "soft"
    """soft: the share of continuations that are right; hard: 1 where at least one is."""
    max_steps: int = Field(default=64, ge=1)
    """Most steps of a completion; further ones are left without a label."""
    max_in_flight: int = Field(default=32, ge=1)
    """Completions that are worked on at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLabel:
    """One step, the characters [start, end) of its completion, and how many of its continuations were right."""

    start: int
    end: int
    correct: int
    of: int

    @property
    def soft(self) -> float:
        """The share that was right."""
        return self.correct / self.of

    @property
    def hard(self) -> float:
        """1 where at least one was right."""
        return float(self.correct > 0)


class StepLabeller:
    """Labels completions, any number at the same time.

    Args:
        sampling: the policy's settings, for continuations of what may be a part of its longest completion.
        correctness: which value of a reward counts, and from where on it is right.
    """

    def __init__(
        self,
        config: StepLabelsConfig,
        *,
        rollouts: RolloutSource,
        rewards: RewardScorer,
        decode: Decode,
        sampling: Sampling,
        correctness: HeldOutConfig,
    ) -> None:
        self._config = config
        self._rollouts = rollouts
        self._rewards = rewards
        self._decode = decode
        self._sampling = sampling
        self._correctness = correctness

    async def label(self, prompt: Prompt, rollout: Rollout) -> list[StepLabel]:
        """The steps of one completion; none of an empty one. The last is labelled by the completion itself.

        Raises:
            SampleNotScorable: the reward refuses a continuation.
            WorkerLost, DeadlineExceeded, RewardUnavailable: as sampling and scoring do.
        """
        if not rollout.completion:
            return []
        spans = step_spans(rollout.completion, self._config.separator)[: self._config.max_steps]
        text = GrowingText(rollout.token_ids[rollout.num_prompt_tokens :], rollout.completion, self._decode)
        lengths = [text.ending_token(end) + 1 for _, end in spans]
        groups = await asyncio.gather(*(self._group(prompt, rollout, length) for length in sorted(set(lengths))))
        counts = dict(zip(sorted(set(lengths)), await self._num_correct(groups), strict=True))
        return [
            StepLabel(start=start, end=end, correct=counts[length], of=self._num_of(rollout, length))
            for (start, end), length in zip(spans, lengths, strict=True)
        ]

    async def _group(self, prompt: Prompt, rollout: Rollout, length: int) -> RolloutGroup:
        """Whole completions that begin with the first `length` tokens of this one."""
        name = f"{rollout.prompt_id}/{rollout.sample_index}/{length}"
        if length == rollout.num_completion_tokens:
            return RolloutGroup(prompt=prompt, rollouts=(replace(rollout, prompt_id=name),))
        prefix = rollout.token_ids[: rollout.num_prompt_tokens + length]
        sampling = replace(
            self._sampling,
            num_samples=self._config.continuations,
            max_completion_tokens=self._sampling.max_completion_tokens - length,
        )
        request = SampleRequest(prompt=replace(prompt, id=name, token_ids=prefix), sampling=sampling)
        group = await self._rollouts.sample(request)
        return RolloutGroup(prompt=prompt, rollouts=tuple(self._whole(prompt, sampled) for sampled in group.rollouts))

    def _whole(self, prompt: Prompt, continued: Rollout) -> Rollout:
        """The continuation as a completion of the prompt itself."""
        first, begin = len(prompt.token_ids), continued.num_prompt_tokens
        token_ids = list(continued.token_ids[first:])
        if token_ids[-1:] and token_ids[-1] in self._sampling.stop_token_ids:
            token_ids.pop()
        text, num_before = self._decode(token_ids), len(self._decode(list(continued.token_ids[first:begin])))
        ends = [found for stop in self._sampling.stop if (found := text.find(stop, num_before)) >= 0]
        return replace(continued, num_prompt_tokens=first, completion=text[: min(ends, default=len(text))])

    async def _num_correct(self, groups: Sequence[RolloutGroup]) -> list[int]:
        """How many rollouts of each group are right; scored in one call, so by one version of the reward."""
        samples = [sample for group in groups for sample in to_reward_samples(group)]
        outcomes = iter(await self._rewards.score(samples))
        return [sum(self._is_correct(group.prompt, next(outcomes)) for _ in group.rollouts) for group in groups]

    def _is_correct(self, prompt: Prompt, outcome: Reward | Failure) -> bool:
        if isinstance(outcome, Failure):
            raise SampleNotScorable(f"row {prompt.row}: {outcome.message} ({outcome.code})")
        return is_correct(outcome, self._correctness)

    def _num_of(self, rollout: Rollout, length: int) -> int:
        return 1 if length == rollout.num_completion_tokens else self._config.continuations
