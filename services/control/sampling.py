"""Completions of a model on the prompts of a data set, scored or not, written down for whoever judges or learns them.

It must not know what they are for. Invariant: what is sampled depends on model, data, seed and sampling settings alone,
not on how many workers sample or when.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from services.contracts.interfaces import RewardScorer, RolloutSource
from services.contracts.records import Failure, Json, Prompt, Reward, RolloutGroup, SampleRequest, Sampling
from services.control.json_rows import write_rows
from services.control.reward_samples import to_reward_samples

COMPLETIONS_FILE = "completions.jsonl"
_MAX_GROUPS_IN_FLIGHT = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledGroup:
    """The completions of a prompt, and what the reward service said of each; nothing where it was not asked."""

    group: RolloutGroup
    outcomes: Sequence[Reward | Failure] = ()

    def to_row(self) -> dict[str, Json]:
        """A chat's prompt is written as its turns; a completion that could not be scored has no reward."""
        row: dict[str, Json] = {
            "prompt": [asdict(message) for message in self.group.prompt.messages] or self.group.prompt.text,
            "completions": [rollout.completion for rollout in self.group.rollouts],
            "reference": dict(self.group.prompt.reference),
        }
        if any(rollout.turns for rollout in self.group.rollouts):
            row["turns"] = [[asdict(turn) for turn in rollout.turns] for rollout in self.group.rollouts]
        if self.outcomes:
            row["rewards"] = [outcome.value if isinstance(outcome, Reward) else None for outcome in self.outcomes]
        return row


async def sample_groups(
    prompts: Sequence[Prompt], *, rollouts: RolloutSource, sampling: Sampling, rewards: RewardScorer | None = None
) -> list[SampledGroup]:
    """Sample every prompt, and have the completions scored where there are `rewards`; in the order of the prompts."""
    in_flight = asyncio.Semaphore(_MAX_GROUPS_IN_FLIGHT)

    async def sample(prompt: Prompt) -> SampledGroup:
        async with in_flight:
            group = await rollouts.sample(SampleRequest(prompt=prompt, sampling=sampling))
            outcomes = await rewards.score(to_reward_samples(group)) if rewards is not None else ()
            return SampledGroup(group=group, outcomes=outcomes)

    return await asyncio.gather(*map(sample, prompts))


def write_completions(sampled: Sequence[SampledGroup], folder: Path) -> Path:
    """Write a row for each prompt, in their order: prompt, completions, reference, and rewards. Returns the file."""
    write_rows(folder / COMPLETIONS_FILE, [one.to_row() for one in sampled])
    return folder / COMPLETIONS_FILE
