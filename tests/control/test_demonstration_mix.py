"""Which demonstrations a learner step is given: rows and coefficient by seed and step."""

from array import array
from collections import Counter
from typing import Any

import pytest

from services.contracts.records import Demonstration, WeightedDemonstrations
from services.control.config import DemonstrationsConfig
from services.control.demonstration_mix import DemonstrationMix
from tests.control.test_controller import Setting
from tests.fakes import FakeLearner

NUM_ROWS = 10


def make_mix(*, seed: int = 0, num_steps: int = 8, **settings: Any) -> DemonstrationMix:
    config = DemonstrationsConfig(prompts="rows.jsonl", response_field="answer", **{"rows_per_step": 4} | settings)
    rows = [Demonstration(token_ids=array("i", [row]), loss_mask=array("b", [1])) for row in range(NUM_ROWS)]
    return DemonstrationMix(config, rows, seed=seed, num_steps=num_steps)


def rows_of(mix: DemonstrationMix, step: int) -> list[int]:
    return [demonstration.token_ids[0] for demonstration in mix.at(step).demonstrations]


def test_the_rows_of_a_step_depend_on_seed_and_step_alone() -> None:
    whole = make_mix()
    straight = [rows_of(whole, step) for step in range(8)]
    for step in (5, 2, 7):
        assert rows_of(make_mix(), step) == straight[step]
    assert [rows_of(make_mix(seed=1), step) for step in range(8)] != straight


def test_every_row_is_learnt_once_an_epoch_in_an_order_of_its_own() -> None:
    mix = make_mix()
    drawn = [row for step in range(5) for row in rows_of(mix, step)]
    assert Counter(drawn) == Counter(dict.fromkeys(range(NUM_ROWS), 2))
    assert sorted(drawn[:NUM_ROWS]) == list(range(NUM_ROWS))
    assert drawn[:NUM_ROWS] != drawn[NUM_ROWS:]


def test_rows_stay_in_order_without_shuffling_and_may_be_fewer_than_a_step_takes() -> None:
    mix = make_mix(shuffle=False, rows_per_step=12)
    assert rows_of(mix, 1) == [2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"coefficient": 0.5}, [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]),
        ({"coefficient": 2.0, "schedule": "linear", "schedule_steps": 4}, [2.0, 1.5, 1.0, 0.5, 0.0, 0.0]),
        (
            {"coefficient": 0.0, "schedule": "linear", "schedule_steps": 2, "final_coefficient": 0.3},
            [0, 0.15, 0.3, 0.3],
        ),
        ({"coefficient": 1.0, "schedule": "linear", "final_coefficient": 0.2}, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]),
    ],
)
def test_the_coefficient_follows_its_schedule(settings: dict[str, Any], expected: list[float]) -> None:
    mix = make_mix(**settings)
    assert [mix.at(step).coefficient for step in range(len(expected))] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rl_weight", "expected"), [("one", [1.0] * 6), ("complement", [0.0, 0.25, 0.5, 0.75, 1.0, 1.0])]
)
def test_rewards_count_one_or_what_a_falling_coefficient_leaves_them(rl_weight: str, expected: list[float]) -> None:
    mix = make_mix(schedule="linear", schedule_steps=4, rl_weight=rl_weight)
    assert [mix.at(step).policy_weight for step in range(6)] == expected


def test_a_step_whose_coefficient_is_0_has_no_rows() -> None:
    mix = make_mix(coefficient=1.0, schedule="linear", schedule_steps=2)
    assert [len(mix.at(step).demonstrations) for step in range(4)] == [4, 4, 0, 0]
    assert mix.at(9).coefficient == 0.0


async def test_a_step_is_given_the_demonstrations_of_its_number_in_a_resumed_run_too() -> None:
    whole, resumed = FakeLearner(), FakeLearner()

    def of_step(step: int) -> WeightedDemonstrations:
        return WeightedDemonstrations(demonstrations=(), coefficient=step / 4)

    await Setting(learner=whole, demonstrations=of_step).run(4)
    await Setting(learner=resumed, demonstrations=of_step, position=8, step=2, accepted=8).run(4)
    assert whole.demonstrations == [of_step(step) for step in range(4)]
    assert resumed.demonstrations == whole.demonstrations[2:]
