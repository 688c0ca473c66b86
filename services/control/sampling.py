"""Completions of a model on the prompts of a data set, written down for whoever judges or revises them.

It must not know what they are for. Invariant: what is written depends on model, data, seed and sampling settings alone,
not on how many workers sample or when.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from services.contracts.interfaces import RolloutSource
from services.contracts.records import Json, Prompt, RolloutGroup, SampleRequest, Sampling
from services.control.json_rows import write_rows

COMPLETIONS_FILE = "completions.jsonl"
_MAX_GROUPS_IN_FLIGHT = 512


async def write_completions(
    prompts: Sequence[Prompt], *, rollouts: RolloutSource, sampling: Sampling, folder: Path
) -> Path:
    """Sample every prompt; write a row for each, in their order: prompt, completions, reference.

    Returns:
        The file.
    """
    in_flight = asyncio.Semaphore(_MAX_GROUPS_IN_FLIGHT)

    async def sample(prompt: Prompt) -> dict[str, Json]:
        async with in_flight:
            return _to_row(await rollouts.sample(SampleRequest(prompt=prompt, sampling=sampling)))

    write_rows(folder / COMPLETIONS_FILE, await asyncio.gather(*map(sample, prompts)))
    return folder / COMPLETIONS_FILE


def _to_row(group: RolloutGroup) -> dict[str, Json]:
    """A chat's prompt is written as its turns."""
    return {
        "prompt": [asdict(message) for message in group.prompt.messages] or group.prompt.text,
        "completions": [rollout.completion for rollout in group.rollouts],
        "reference": dict(group.prompt.reference),
    }
