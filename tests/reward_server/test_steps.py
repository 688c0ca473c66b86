"""Rewards that score single steps: the example that does, and the steps of several as one list."""

from pathlib import Path

from reward_server.assembly import load_reward
from reward_server.config import RewardServiceConfig
from reward_server.steps import merge_steps
from services.contracts.records import Reward, StepReward
from tests.reward_server.serving import make_sample

DIGIT_BY_DIGIT = Path(__file__).parents[2] / "examples" / "rewards" / "digit_by_digit.py"


def test_the_example_rewards_each_digit_in_its_place() -> None:
    function = load_reward(RewardServiceConfig(name=f"{DIGIT_BY_DIGIT}:score"))
    reward = function.score(make_sample(completion="0859", answer="075"))  # type: ignore[arg-type] # it takes one sample
    assert isinstance(reward, Reward)
    assert [(step.start, step.end, step.value) for step in reward.steps] == [
        (0, 1, 1.0), (1, 2, 0.0), (2, 3, 1.0), (3, 4, 0.0)
    ]  # fmt: skip
    assert reward.value == 0.0


def test_steps_that_end_together_become_one_and_no_value_is_lost() -> None:
    steps = [StepReward(start=2, end=5, value=1.0), StepReward(start=0, end=3, value=2.0)]
    merged = merge_steps([*steps, StepReward(start=4, end=5, value=4.0)])
    assert merged == (StepReward(start=0, end=3, value=2.0), StepReward(start=3, end=5, value=5.0))


def test_one_reward_s_steps_stay_as_they_are() -> None:
    steps = (StepReward(start=1, end=2, value=1.0), StepReward(start=4, end=9, value=-1.0))
    assert merge_steps(steps) == steps
    assert merge_steps([]) == ()
