"""What steps a reward may give: in order, none empty, none overlapping another or leaving the completion."""

import math

import pytest

from services.contracts.records import Reward, RewardDescription, StepReward
from services.transport.reward_validation import fault_in_reward


def fault(*spans: tuple[int, int], value: float = 0.5) -> str | None:
    steps = tuple(StepReward(start=start, end=end, value=value) for start, end in spans)
    reward = Reward(value=0.0, steps=steps)
    return fault_in_reward(reward, description=RewardDescription(name="steps"), completion="ab😀d")


@pytest.mark.parametrize("spans", [[], [(0, 4)], [(0, 1), (1, 2), (2, 4)], [(1, 2), (3, 4)]])
def test_steps_may_touch_leave_gaps_and_count_an_astral_character_once(spans: list[tuple[int, int]]) -> None:
    assert fault(*spans) is None


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ([(0, 5)], "covers characters [0, 5) of a completion of 4"),
        ([(-1, 2)], "covers characters [-1, 2)"),
        ([(3, 2)], "covers characters [3, 2)"),
        ([(2, 2)], "the step at character 2 is empty"),
        ([(0, 2), (1, 3)], "[1, 3) begins before character 2, where the one before it ends"),
        ([(2, 3), (0, 1)], "give steps in order and without overlap"),
    ],
)
def test_other_steps_are_told_with_their_characters(spans: list[tuple[int, int]], said: str) -> None:
    found = fault(*spans)
    assert found is not None and said in found


def test_a_step_that_is_not_finite_is_a_fault() -> None:
    found = fault((0, 1), value=math.nan)
    assert found is not None and "which is not finite" in found


def test_only_an_empty_completion_has_an_empty_step() -> None:
    reward = Reward(value=0.0, steps=(StepReward(start=0, end=0, value=0.5),))
    assert fault_in_reward(reward, description=RewardDescription(name="steps"), completion="") is None
