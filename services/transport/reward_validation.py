"""What a reward, a description and a reply must be; each check returns the fault in words, or None.

Both sides use it: the server on what a user's function returned, the client on what came over the wire. It must not
know gRPC. Invariants: a reward without a fault is finite throughout and its value lies within the declared range;
components are raw parts of the value, so the range does not bind them; its steps are in order and within the
completion, none overlaps another, and none is empty unless the completion is.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from services.contracts.records import REWARD_CONTRACT_VERSION, Reward, RewardDescription, StepReward

NAME_PATTERN = re.compile(r"[A-Za-z0-9_]+")
MAX_NAMED_IDS = 3
MAX_COMPONENTS = 256


def fault_in_reward(reward: Reward, *, description: RewardDescription, completion: str) -> str | None:
    """Why `reward` cannot be the score of `completion`."""
    if not math.isfinite(reward.value):
        return f"the value is {reward.value}, which is not finite"
    if not _in_range(reward.value, description):
        return f"the value {reward.value} lies outside the declared range {range_text(description)}"
    if len(reward.components) > MAX_COMPONENTS:
        return f"it has {len(reward.components)} components, each of which is a metric; {MAX_COMPONENTS} is the most"
    for name, value in reward.components.items():
        if not math.isfinite(value):
            return f"component {name!r} is {value}, which is not finite"
    return _fault_in_steps(reward.steps, completion) if reward.steps else None


def fault_in_description(description: RewardDescription) -> str | None:
    """Why a service cannot describe itself so."""
    if description.contract_version != REWARD_CONTRACT_VERSION:
        return (
            f"it keeps version {description.contract_version} of the reward contract, and version "
            f"{REWARD_CONTRACT_VERSION} is wanted; run a server of that version, or a Trireme of the server's"
        )
    if not NAME_PATTERN.fullmatch(description.name):
        return f"its name is {description.name!r}; a name has letters, digits and underscores only"
    bounds = [bound for bound in (description.minimum, description.maximum) if bound is not None]
    if any(math.isnan(bound) for bound in bounds) or bounds != sorted(bounds):
        return f"its range is {range_text(description)}; the minimum may not exceed the maximum"
    return None


def fault_in_reply(*, asked: str, answered: str, sample_ids: Sequence[str], result_ids: Sequence[str]) -> str | None:
    """Why a reply to request `asked` with `sample_ids` cannot be its answer."""
    if answered != asked:
        return f"it answered request {answered!r} where {asked!r} was asked"
    if sample_ids == result_ids:
        return None
    wanted, found = Counter(sample_ids), Counter(result_ids)
    if wanted == found:  # Any order will do.
        return None
    lists = {
        "missing": wanted.keys() - found.keys(),
        "foreign": found.keys() - wanted.keys(),
        "given more than once": {name for name, count in found.items() if count > 1},
    }
    named = [f"{what}: {_some(ids)}" for what, ids in lists.items() if ids]
    return f"{len(result_ids)} results for {len(sample_ids)} samples ({'; '.join(named)})"


def range_text(description: RewardDescription) -> str:
    """The declared range in words."""
    low, high = description.minimum, description.maximum
    return f"[{'-inf' if low is None else low}, {'inf' if high is None else high}]"


def _fault_in_steps(steps: Sequence[StepReward], completion: str) -> str | None:
    end = 0
    for step in steps:
        if not math.isfinite(step.value):
            return f"the step at characters [{step.start}, {step.end}) is {step.value}, which is not finite"
        if not 0 <= step.start <= step.end <= len(completion):
            return f"a step covers characters [{step.start}, {step.end}) of a completion of {len(completion)}"
        if step.start == step.end and completion:
            return f"the step at character {step.start} is empty; only an empty completion has an empty step"
        if step.start < end:
            return (
                f"the step at characters [{step.start}, {step.end}) begins before character {end}, where the one "
                "before it ends; give steps in order and without overlap"
            )
        end = step.end
    return None


def _in_range(value: float, description: RewardDescription) -> bool:
    low, high = description.minimum, description.maximum
    return (low is None or value >= low) and (high is None or value <= high)


def _some(ids: set[str]) -> str:
    shown = ", ".join(repr(name) for name in sorted(ids)[:MAX_NAMED_IDS])
    return shown if len(ids) <= MAX_NAMED_IDS else f"{shown} and {len(ids) - MAX_NAMED_IDS} more"
