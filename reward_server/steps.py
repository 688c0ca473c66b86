"""The steps of several rewards of one completion as one list.

It must not know how a step is scored. Invariant: steps come out in order, none empty, none overlapping another,
with no value lost.
"""

from collections import defaultdict
from collections.abc import Iterable

from services.contracts.records import StepReward


def merge_steps(steps: Iterable[StepReward]) -> tuple[StepReward, ...]:
    """The steps of all parts of a reward as one list that keeps every value at the character where its step ended.

    Steps that end at the same character become one, with the sum of their values; a step begins no earlier than the one
    before it ends.
    """
    starts: dict[int, int] = {}
    values: defaultdict[int, float] = defaultdict(float)
    for step in steps:
        starts[step.end] = min(step.start, starts.get(step.end, step.start))
        values[step.end] += step.value
    merged: list[StepReward] = []
    for end in sorted(values):
        before = merged[-1].end if merged else 0
        merged.append(StepReward(start=max(before, starts[end]), end=end, value=values[end]))
    return tuple(merged)
