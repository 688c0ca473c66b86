"""Scored groups that wait for the learner, as lines of JSON in a checkpoint.

It must not know when they are saved. Invariant: what is read is what was written, to the last bit of each logprob; of a
prompt only its place in the prompt stream is kept.
"""

import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from services.contracts.records import Message, Prompt, Reward, Rollout, RolloutGroup, ScoredGroup, StepReward
from services.control.rollout_buffer import Waiting

_COLUMNS = {"token_ids": "i", "logprobs": "f", "policy_versions": "i", "loss_mask": "b"}


def write_groups(path: Path, groups: Sequence[Waiting]) -> None:
    """Write one line a group."""
    path.write_text("".join(json.dumps(_encode(waiting)) + "\n" for waiting in groups))


def read_groups(path: Path, prompt_at: Callable[[int], Prompt]) -> tuple[Waiting, ...]:
    """Read what `write_groups` wrote; `prompt_at` gives the prompt at a position of the stream."""
    return tuple(_decode(json.loads(line), prompt_at) for line in path.read_text().splitlines())


def read_positions(path: Path) -> tuple[int, ...]:
    """The positions in the prompt stream of what `write_groups` wrote."""
    return tuple(json.loads(line)["position"] for line in path.read_text().splitlines())


def _encode(waiting: Waiting) -> dict[str, Any]:  # Any: JSON
    rollouts = []
    for rollout in waiting.group.group.rollouts:
        values = {name: getattr(rollout, name) for name in Rollout.__dataclass_fields__}
        turns = [asdict(turn) for turn in rollout.turns]
        rollouts.append(values | {name: list(values[name]) for name in _COLUMNS} | {"turns": turns})
    return {
        "deadline": waiting.deadline,
        "position": waiting.position,
        "rollouts": rollouts,
        "rewards": [asdict(reward) for reward in waiting.group.rewards],
        "baseline": waiting.group.baseline,
    }


def _decode(line: dict[str, Any], prompt_at: Callable[[int], Prompt]) -> Waiting:  # Any: JSON
    rollouts = tuple(
        Rollout(
            **values
            | {name: array(typecode, values[name]) for name, typecode in _COLUMNS.items()}
            | {"turns": tuple(Message(**turn) for turn in values["turns"])}
        )
        for values in line["rollouts"]
    )
    rewards = tuple(
        Reward(**values | {"steps": tuple(StepReward(**step) for step in values["steps"])})
        for values in line["rewards"]
    )
    group = RolloutGroup(prompt=prompt_at(line["position"]), rollouts=rollouts)
    return Waiting(
        deadline=line["deadline"],
        position=line["position"],
        group=ScoredGroup(group=group, rewards=rewards, baseline=line["baseline"]),
    )
