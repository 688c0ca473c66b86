"""What raises each alarm, by hand; that it is raised once; and that a resumed run goes on as one that never stopped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.cli.arguments import load_config
from services.control.alarms import ALARMS, AlarmConfig, Alarms, AlarmsConfig
from services.control.config import RunConfig

Row = dict[str, float]


def watching(name: str, *, threshold: float, window: int = 1, action: str = "warn") -> AlarmsConfig:
    """One alarm; all others are off."""
    off = {other: {"threshold": 0.0, "action": "ignore"} for other in ALARMS}
    return AlarmsConfig.model_validate(off | {name: {"threshold": threshold, "window": window, "action": action}})


def raised_at(config: AlarmsConfig, rows: Sequence[Row]) -> list[int]:
    alarms = Alarms(config)
    return [index for index, row in enumerate(rows) if alarms.check(row)]


def evaluation(proxy: float, gold: float, *, spread: float = 0.5, agreement: float = 0.5) -> Row:
    return {
        "gold/proxy": proxy,
        "gold/reward": gold,
        "gold/reward_std": spread,
        "gold/proxy_std": 1.0,
        "gold/correlation": agreement,
    }


def step(mean: float = 0.5, std: float = 0.25) -> Row:
    return {"reward/mean": mean, "reward/std": std}


@pytest.mark.parametrize(
    ("name", "threshold", "rows", "expected"),
    [
        # Best gold 0.6; 0.5 is 0.2 deviations below it, 0.4 is 0.4. Steps between are no readings.
        ("divergence", 0.3, [evaluation(1.0, 0.6), step(), evaluation(2.0, 0.5), evaluation(3.0, 0.4)], [3]),
        # A proxy that falls too says nothing of hacking.
        ("divergence", 0.3, [evaluation(1.0, 0.6), evaluation(0.9, 0.1)], []),
        ("sign_flip", 0.2, [evaluation(1, 1, agreement=0.9), step(), evaluation(1, 1, agreement=-0.3)], [2]),
        # After three steps at 0.5 with deviation 0.25, a mean of 1.5 is four deviations away.
        ("drift", 3.0, [step(), step(), step(), step(0.6), step(1.5)], [4]),
        ("drift", 3.0, [step(), step(1.5)], []),
        # The first success among rewards of 0 is no jump: its own deviation counts too.
        ("drift", 3.0, [step(0, 0), step(0, 0), step(0, 0), step(0.1, 0.3)], []),
        ("saturation", 0.9, [{"signals/at_maximum": 0.95, "signals/flat_groups": 0.1}], [0]),
        ("saturation", 0.9, [{"signals/at_maximum": 0.1, "signals/flat_groups": 1.0}], [0]),
        ("constant", 0.99, [{"signals/one_value": 0.5}, {"signals/one_value": 1.0}], [1]),
        ("length", 0.6, [{"signals/length_correlation": 0.5}, {"signals/length_correlation": -0.7}], [1]),
        ("kl", 0.5, [{"kl/reference": 0.4}, {"kl/reference": 0.6}], [1]),
    ],
)
def test_what_raises_an_alarm(name: str, threshold: float, rows: list[Row], expected: list[int]) -> None:
    assert raised_at(watching(name, threshold=threshold), rows) == expected


def test_an_alarm_says_what_was_read_and_against_what() -> None:
    (alarm,) = Alarms(watching("kl", threshold=0.5, action="stop")).check({"kl/reference": 0.75})
    assert (alarm.name, alarm.action, alarm.reading) == ("kl", "stop", 0.75)
    assert alarm.text == "kl: the policy is 0.75 nats a token from its reference (threshold 0.5)"


def test_a_window_wants_readings_in_a_row_and_one_that_lasts_is_raised_once_until_it_was_quiet() -> None:
    readings = [1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1]
    rows = [{"kl/reference": float(reading)} for reading in readings]
    assert raised_at(watching("kl", threshold=0.5, window=3), rows) == [5, 11]


def test_an_alarm_that_is_ignored_is_never_raised() -> None:
    assert raised_at(watching("kl", threshold=0.5, action="ignore"), [{"kl/reference": 9.0}]) == []


def test_a_row_without_numbers_raises_nothing_and_nan_is_no_reading_above() -> None:
    rows: list[Row] = [{}, {"kl/reference": float("nan"), "reward/mean": float("nan"), "reward/std": float("nan")}]
    assert (
        raised_at(AlarmsConfig.model_validate({name: {"threshold": 0.0, "window": 1} for name in ALARMS}), rows) == []
    )


ROWS = st.lists(
    st.fixed_dictionaries(
        {"kl/reference": st.floats(0, 1), "reward/mean": st.floats(-1, 1), "reward/std": st.floats(0, 1)},
        optional={"signals/at_maximum": st.floats(0, 1), "signals/length_correlation": st.floats(-1, 1)},
    )
    | st.builds(evaluation, st.floats(0, 3), st.floats(0, 1), agreement=st.floats(-1, 1)),
    max_size=25,
)


@given(ROWS, st.integers(0, 25))
def test_a_resumed_run_raises_what_an_uninterrupted_one_would(rows: list[Row], cut: int) -> None:
    config = AlarmsConfig.model_validate({name: {"threshold": 0.3, "window": 2} for name in ALARMS})
    whole, resumed = Alarms(config, rows[:0]), Alarms(config, rows[:cut])
    expected = [whole.check(row) for row in rows]
    assert [resumed.check(row) for row in rows[cut:]] == expected[cut:]


def test_every_alarm_has_a_documented_setting() -> None:
    assert set(AlarmsConfig.model_fields) == set(ALARMS)
    for field in (*AlarmsConfig.model_fields.values(), *AlarmConfig.model_fields.values()):
        assert field.description


BASE: dict[str, Any] = {"model": {"path": "x"}, "data": {"prompts": "x"}, "reward": {"addresses": ["127.0.0.1:1"]}}
GOLD = {"gold": {"services": [{"name": "exact_match"}]}}


def test_one_setting_of_an_alarm_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: {path: x}\ndata: {prompts: x}\nreward: {addresses: ['127.0.0.1:1']}\nalarms: {length: {action: stop}}\n"
    )
    config = load_config(RunConfig, [str(path), "--alarms.drift.threshold", "7"], prog="trireme train", summary="")
    assert config.alarms.length == AlarmsConfig().length.model_copy(update={"action": "stop"})
    assert config.alarms.drift == AlarmsConfig().drift.model_copy(update={"threshold": 7.0})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({**GOLD}, "set evaluate.prompts and evaluate.every"),
        ({**GOLD, "evaluate": {"prompts": "x"}}, "set evaluate.prompts and evaluate.every"),
        ({"alarms": {"divergence": {"threshold": 1.0}}}, "alarms.divergence would never be raised: gold is not set"),
        ({"alarms": {"kl": {"threshold": 1.0}}}, "alarms.kl would never be raised: learner.kl_coefficient is 0"),
        ({"alarms": {"kl": {"threshold": 1.0, "action": "explode"}}}, "'ignore', 'warn', 'pause' or 'stop'"),
    ],
)
def test_an_alarm_that_could_not_be_raised_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RunConfig.model_validate(BASE | changes)


def test_gold_is_a_reward_of_its_own() -> None:
    config = RunConfig.model_validate(BASE | GOLD | {"evaluate": {"prompts": "x", "every": 5}})
    assert config.gold is not None and config.gold.services[0].name == "exact_match"
