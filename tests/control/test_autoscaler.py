"""The number of workers follows the learner's wait, one at a time and within bounds."""

import pytest
from pydantic import ValidationError

from rollout_workers.config import RolloutConfig
from services.control.autoscaler import AutoscaleConfig, Autoscaler
from services.control.config import RunConfig

BOUNDS = RolloutConfig(num_workers=2, min_workers=1, max_workers=3)


def decide(wait: float, *, num_workers: int, num_serving: int | None = None, steps: int = 3, **config: object) -> int:
    scaler = Autoscaler(AutoscaleConfig.model_validate({"enabled": True, "settle_steps": 3, **config}), BOUNDS)
    serving = num_workers if num_serving is None else num_serving
    decisions = [scaler.decide(learner_wait=wait, num_workers=num_workers, num_serving=serving) for _ in range(steps)]
    assert decisions[:-1] == [num_workers] * (steps - 1)
    return decisions[-1]


@pytest.mark.parametrize(
    ("wait", "num_workers", "wanted"), [(0.5, 2, 3), (0.5, 3, 3), (0.05, 2, 2), (0.01, 2, 1), (0.01, 1, 1)]
)
def test_a_worker_is_added_while_the_learner_waits_and_drained_while_workers_idle(
    wait: float, num_workers: int, wanted: int
) -> None:
    assert decide(wait, num_workers=num_workers) == wanted


@pytest.mark.parametrize(("wait", "num_workers", "wanted"), [(0.5, 1, 3), (0.05, 1, 1), (0.01, 1, 1)])
def test_where_lost_workers_were_given_up_it_goes_back_to_the_lowest_bound_or_nowhere(
    wait: float, num_workers: int, wanted: int
) -> None:
    scaler = Autoscaler(
        AutoscaleConfig(enabled=True, settle_steps=1), RolloutConfig(num_workers=3, min_workers=3, max_workers=4)
    )
    assert scaler.decide(learner_wait=wait, num_workers=num_workers, num_serving=num_workers) == wanted


def test_nothing_changes_while_workers_are_on_their_way_nor_when_it_is_off() -> None:
    assert decide(0.9, num_workers=2, num_serving=1, steps=9) == 2
    assert decide(0.9, num_workers=2, steps=9, enabled=False) == 2


def test_a_step_in_which_the_reward_service_was_away_says_nothing_of_the_workers() -> None:
    scaler = Autoscaler(AutoscaleConfig(enabled=True, settle_steps=2), BOUNDS)
    waits = [(0.9, 0.8), (0.0, 0.2), (0.9, 0.0), (0.9, 0.8), (0.9, 0.3)]
    wanted = [scaler.decide(learner_wait=a, reward_wait=b, num_workers=2, num_serving=2) for a, b in waits]
    assert wanted == [2, 2, 2, 2, 3]


def test_after_a_change_as_many_steps_pass_again() -> None:
    scaler = Autoscaler(AutoscaleConfig(enabled=True, settle_steps=2), BOUNDS)
    waits = iter([0.9, 0.9, 0.9, 0.9])
    numbers, num_workers = [], 1
    for wait in waits:
        num_workers = scaler.decide(learner_wait=wait, num_workers=num_workers, num_serving=num_workers)
        numbers.append(num_workers)
    assert numbers == [1, 2, 2, 3]


def test_it_is_refused_where_the_learner_always_waits() -> None:
    sections = {"model": {"path": "m"}, "data": {"prompts": "d"}, "reward": {"addresses": ["127.0.0.1:1"]}}
    with pytest.raises(ValidationError, match=r"set train\.max_staleness to 1 or more"):
        RunConfig.model_validate(sections | {"autoscale": {"enabled": True}})
    RunConfig.model_validate(sections | {"autoscale": {"enabled": True}, "train": {"max_staleness": 1}})
