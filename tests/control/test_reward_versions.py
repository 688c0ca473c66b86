"""Versions of a reward model that learns beside a run: which is served, after success, failure, and a kill."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from services.contracts.errors import TriremeError, UserError
from services.contracts.reward_model import RewardModelCard, read_card, write_card
from services.control.fresh_pairs import PAIRS_FILE
from services.control.reward_versions import LATEST, LOG_FILE, AdaptSection, RewardVersions

PAIR = {"prompt": "1+1=", "chosen": "2", "rejected": "x"}


class FakeTrainer:
    """Ends with one exit code after the other, and makes a model where that is 0.

    Attributes:
        began_with: the version of the weights that each training began with.
    """

    def __init__(self, *codes: int, accuracy: float = 0.9) -> None:
        self.began_with: list[str] = []
        self._codes = list(codes)
        self._accuracy = accuracy

    async def __call__(self, folder: Path, weights: Path, config: AdaptSection) -> int:
        assert (folder / PAIRS_FILE).read_text() == json.dumps(PAIR) + "\n"
        assert not (folder / "half done").exists()
        self.began_with.append(read_card(weights).version)
        (folder / LOG_FILE).write_text("the last words")
        code = self._codes.pop(0)
        if code == 0:
            write_model(folder / "export", f"trained {len(self.began_with)} from {self.began_with[-1]}")
            (folder / "summary.json").write_text(json.dumps({"accuracy_after": self._accuracy}))
        return code


def write_model(folder: Path, version: str, **card: object) -> Path:
    folder.mkdir(parents=True)
    write_card(folder, RewardModelCard(version=version, max_tokens=64, **card))
    return folder


def make(folder: Path, trainer: FakeTrainer, told: list[str] | None = None, **section: object) -> RewardVersions:
    """The versions in `folder`, as a command that starts finds them."""
    values: Mapping[str, object] = {"dir": folder / "adapt", "follow": folder, "initial": folder / "initial"}
    config = AdaptSection(trainer=folder, **{**values, **section})
    versions = RewardVersions(config, (told if told is not None else []).append, trainer)
    versions.begin()
    return versions


def served(folder: Path) -> str:
    return read_card(folder / "adapt" / LATEST).version


async def test_each_version_begins_with_the_one_before_and_takes_its_place(tmp_path: Path) -> None:
    write_model(tmp_path / "initial", "first")
    trainer = FakeTrainer(0, 0, 0)
    versions = make(tmp_path, trainer, keep_versions=2)
    assert (served(tmp_path), versions.number) == ("first", 0)
    for count in (16, 32, 48):
        await versions.make([PAIR], num_pairs=count)

    assert trainer.began_with == ["first", "trained 1 from first", "trained 2 from trained 1 from first"]
    assert served(tmp_path).startswith("trained 3 from")
    assert sorted(path.name for path in (tmp_path / "adapt" / "versions").iterdir()) == ["2", "3"]
    again = make(tmp_path, FakeTrainer())
    assert (again.number, again.num_pairs) == (3, 48)


async def test_what_a_killed_loop_left_is_begun_again(tmp_path: Path) -> None:
    write_model(tmp_path / "initial", "first")
    left = tmp_path / "adapt" / "versions" / "1"
    left.mkdir(parents=True)
    (left / "half done").touch()
    await make(tmp_path, FakeTrainer(0)).make([PAIR], num_pairs=16)
    assert served(tmp_path) == "trained 1 from first"


async def test_a_version_that_is_not_good_enough_is_not_served(tmp_path: Path) -> None:
    write_model(tmp_path / "initial", "first")
    told: list[str] = []
    versions = make(tmp_path, FakeTrainer(0, accuracy=0.5), told, min_accuracy=0.6)
    await versions.make([PAIR], num_pairs=16)
    assert (served(tmp_path), versions.num_pairs) == ("first", 16)
    assert told[-1] == "not served: accuracy 50.0% is below 60.0%"


async def test_trainings_may_fail_but_not_time_and_again(tmp_path: Path) -> None:
    write_model(tmp_path / "initial", "first")
    told: list[str] = []
    versions = make(tmp_path, FakeTrainer(1, 1, 0, 1, 1, 1), told)
    for _ in range(5):
        await versions.make([PAIR], num_pairs=16)
    assert versions.number == 1
    assert "the served version is kept; trireme reward-model ended with exit code 1:\n  the last words" in told
    with pytest.raises(TriremeError, match="3 trainings in a row failed"):
        await versions.make([PAIR], num_pairs=16)


async def test_a_configuration_that_the_trainer_refuses_stops_the_loop(tmp_path: Path) -> None:
    write_model(tmp_path / "initial", "first")
    with pytest.raises(UserError, match="the last words"):
        await make(tmp_path, FakeTrainer(2)).make([PAIR], num_pairs=16)


def test_a_first_model_that_cannot_be_is_refused_and_another_may_take_its_place(tmp_path: Path) -> None:
    write_model(tmp_path / "chats", "first", template="chat")
    with pytest.raises(UserError, match="is no reward model"):
        make(tmp_path, FakeTrainer())
    with pytest.raises(UserError, match="reads chats"):
        make(tmp_path, FakeTrainer(), initial=tmp_path / "chats")
    write_model(tmp_path / "initial", "plain")
    make(tmp_path, FakeTrainer())
    assert served(tmp_path) == "plain"
