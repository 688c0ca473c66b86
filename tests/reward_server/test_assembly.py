"""From names and options to rewards, and every mistake told before anything is served."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from reward_server.__main__ import read_target
from reward_server.assembly import build_scorer, load_reward
from reward_server.config import RewardConfig, RewardServerConfig, RewardServerFile, RewardServiceConfig
from services.contracts.errors import UserError
from services.contracts.records import Reward
from tests.readme_tree import ROOT
from tests.reward_server.serving import make_sample

MY_REWARD = '''
"""Every form in which a user may write a reward."""
from reward_server import RewardFunction, RewardOptions

def score(sample):
    return 1.0

def scaled(sample, scale=1.0):
    return scale

described = RewardFunction(lambda samples: [0.5] * len(samples), name="half", batched=True, minimum=0.0, maximum=1.0)

class Configured(RewardOptions):
    level: float = 0.0
    """The value of every sample."""

    def reward(self):
        return RewardFunction(lambda sample: self.level, name="configured")

def without_sample():
    return 1.0

def too_many(sample, completion):
    return 1.0

nothing = RewardFunction(lambda: 1.0)

compiled = max

number = 3
'''


@pytest.fixture
def my_reward(tmp_path: Path) -> Path:
    path = tmp_path / "my-reward.py"
    path.write_text(MY_REWARD)
    return path


@pytest.mark.parametrize(
    ("attribute", "options", "name", "value"),
    [
        ("score", {}, "my_reward_score", 1.0),
        ("scaled", {"scale": 0.25}, "my_reward_scaled", 0.25),
        ("described", {}, "half", 0.5),
        ("Configured", {"level": 3}, "configured", 3.0),
    ],
)
async def test_a_users_reward_is_loaded_from_its_file(
    my_reward: Path, attribute: str, options: dict[str, float], name: str, value: float
) -> None:
    service = RewardServiceConfig(name=f"{my_reward}:{attribute}", options=options)
    scorer = build_scorer([service], RewardServerConfig())

    assert scorer.description.name == name
    assert await scorer.score([make_sample()]) == [Reward(value=value, components={name: value})]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("math_anwser", {}, "built in are exact_match, .*math_answer, "),
        ("exact_match", {"fold": True}, "'exact_match': fold: Extra inputs.*reference_field, strip, ignore_case"),
        ("missing.py:score", {}, "no reward file missing.py"),
        ("{file}:absent", {}, "has no 'absent'"),
        ("{file}:number", {}, "must be a function"),
        ("{file}:Configured", {"level": "high"}, "level: Input should be a valid number"),
        ("no.such.module:score", {}, "does not load: ModuleNotFoundError"),
        ("{file}:without_sample", {}, r"parameters \(\), and is called with a sample: too many positional arguments"),
        ("{file}:too_many", {}, "called with a sample: missing a required argument: 'completion'"),
        ("{file}:nothing", {}, r"parameters \(\), and is called with a sample"),
        ("{file}:scaled", {"scaling": 2}, "and the options scaling: got an unexpected keyword argument 'scaling'"),
    ],
)
def test_a_mistake_names_itself_and_what_would_be_right(
    my_reward: Path, name: str, options: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        load_reward(RewardServiceConfig(name=name.format(file=my_reward), options=options))


def test_a_function_that_does_not_tell_its_parameters_is_taken_as_it_is(my_reward: Path) -> None:
    assert load_reward(RewardServiceConfig(name=f"{my_reward}:compiled")).score is max


def test_a_file_that_ends_the_process_is_named_like_one_that_raises(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys\nsys.exit()")
    with pytest.raises(UserError, match=r"script\.py does not load: SystemExit"):
        load_reward(RewardServiceConfig(name=f"{tmp_path}/script.py:score"))


def test_a_file_that_raises_is_named_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_like_this")
    with pytest.raises(UserError, match=r"broken\.py does not load: ModuleNotFoundError.*nothing_like_this"):
        load_reward(RewardServiceConfig(name=f"{tmp_path}/broken.py:score"))


async def test_a_file_that_serves_when_imported_is_told_about_the_guard(tmp_path: Path) -> None:
    (tmp_path / "unguarded.py").write_text("from reward_server import serve\nserve(lambda sample: 1.0)\n")
    with pytest.raises(UserError, match='if __name__ == "__main__":'):
        build_scorer([RewardServiceConfig(name=f"{tmp_path}/unguarded.py:score")], RewardServerConfig())


def test_options_are_part_of_the_version() -> None:
    versions = {
        load_reward(RewardServiceConfig(name="exact_match", options=options)).version
        for options in ({}, {"strip": False}, {"ignore_case": True})
    }
    assert len(versions) == 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "neither was given"),
        ({"addresses": ["127.0.0.1:1"], "services": [{"name": "exact_match"}]}, "both was given"),
        ({"addresses": ["10.1.1.1:1"]}, "allow_plaintext"),
        ({"addresses": ["localhost"]}, "HOST:PORT"),
        ({"addresses": ["127.0.0.1:1"], "timeout": 3}, "timeout"),
        ({"services": [{"name": "exact_match", "weight": float("nan")}]}, "finite"),
    ],
)
def test_a_run_says_in_one_way_where_its_rewards_come_from(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RewardConfig(**values)  # type: ignore[arg-type]  # a mapping of several types


def test_the_server_of_a_run_takes_a_free_port_whatever_else_is_set() -> None:
    values = {"services": [{"name": "exact_match"}], "server": {"timeout_s": 3.0}}
    assert RewardConfig.model_validate(values).server.port == 0


def test_every_setting_of_a_run_is_documented() -> None:
    for section in (RewardConfig, RewardServerFile):
        assert all(field.description for field in section.model_fields.values())


def test_a_server_listens_beyond_loopback_only_when_allowed() -> None:
    with pytest.raises(ValidationError, match="allow_plaintext"):
        RewardServerConfig(host="0.0.0.0")
    assert RewardServerConfig(host="0.0.0.0", allow_plaintext=True).host == "0.0.0.0"


def test_a_full_call_must_fit_the_queue() -> None:
    with pytest.raises(ValidationError, match="max_pending_samples is 10, less than max_samples_per_call"):
        RewardServerConfig(max_pending_samples=10)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"name": "exact_match", "wieght": 2}, "'wieght' is not a setting here; did you mean weight?"),
        ({"label": "a"}, "give one of name, remote, ensemble; given: none"),
        ({"name": "exact_match", "remote": {"addresses": ["127.0.0.1:1"]}}, "given: name, remote"),
        ({"remote": {"addresses": ["127.0.0.1:1"]}}, "a part that is remote needs a label"),
        ({"label": "a", "remote": {"addresses": ["10.1.1.1:1"]}}, "allow_plaintext"),
        ({"label": "a", "remote": {"adresses": ["127.0.0.1:1"]}}, "did you mean addresses?"),
        ({"label": "a", "remote": {"addresses": ["127.0.0.1:1"]}, "options": {"x": 1}}, "for a reward by name"),
        ({"name": "exact_match", "label": "two words"}, "letters, digits and underscores"),
        ({"name": "exact_match", "clip": [1.0, 0.0]}, "lower bound first"),
        ({"name": "exact_match", "normalise": {"mean": 1.0}}, "mean and std together"),
        ({"name": "exact_match", "normalise": {"mean": 1.0, "std": 2.0, "file": "x"}}, "leave out file"),
        ({"name": "exact_match", "gate": {"at_least": 1.0}}, "otherwise"),
        (
            {"name": "exact_match", "gate": {"at_least": 1.0, "otherwise": 0.0}, "on_failure": "skip_part"},
            "let everything through",
        ),
        ({"name": "exact_match", "gate": {"at_least": 1.0, "otherwise": 0.0}}, "every part has weight 0"),
        ({"name": "exact_match", "when": {"kind": "a", "level": 2}}, "by one field of the reference, not by 2"),
        ({"name": "exact_match", "when": "otherwise"}, "no other part says for which samples"),
        ({"name": "exact_match", "on_failure": "zero"}, "'retry', 'fail' or 'skip_part'"),
        ({"label": "a", "ensemble": {"members": [{"name": "exact_match"}]}}, "at least 2 items"),
        ({"label": "a", "ensemble": {"members": [{"name": "a", "weight": 2.0}] * 2}}, "'weight' is not a setting"),
    ],
)
def test_parts_that_make_no_sense_are_refused_with_the_reason(part: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(words)):
        RewardServerFile.model_validate({"services": [part]})


def test_routes_go_by_one_field() -> None:
    parts = [{"name": "exact_match", "when": {"kind": "a"}}, {"name": "math_answer", "when": {"source": "b"}}]
    with pytest.raises(ValidationError, match="by one field of the reference, not by kind and source"):
        RewardServerFile.model_validate({"services": parts})


TREE = """
services:
  - {name: required_format, options: {preset: think_answer}, gate: {at_least: 1.0, otherwise: -1.0}}
  - {name: "FILE:answer", when: {kind: math}}
  - label: helpful
    when: otherwise
    weight: 0.5
    ensemble:
      aggregate: minimum
      members: [{name: "FILE:warm"}, {name: "FILE:stern", clip: [0, 1]}]
"""

PARTS = """
def answer(sample):
    return float(sample.reference["answer"] in sample.completion)

def warm(sample):
    return 0.75

def stern(sample):
    return -3.0
"""


async def test_a_file_of_gates_routes_and_ensembles_scores_as_it_reads(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(PARTS)
    (tmp_path / "rewards.yaml").write_text(TREE.replace("FILE", str(tmp_path / "my.py")))
    file = read_target(str(tmp_path / "rewards.yaml"), {})
    scorer = build_scorer(file.services, file.server)
    written = "<think>so</think><answer>7</answer>"
    outcomes = await scorer.score(
        [
            make_sample(0, completion="7", kind="math", answer="7"),
            make_sample(1, completion=written, kind="math", answer="7"),
            make_sample(2, completion=written, kind="chat"),
        ]
    )
    assert outcomes == [
        Reward(value=-1.0, components={"required_format": 0.0}),
        Reward(value=1.0, components={"required_format": 1.0, "my_answer": 1.0}),
        Reward(
            value=0.0,
            components={
                "required_format": 1.0,
                "helpful": 0.0,
                "helpful/my_warm": 0.75,
                "helpful/my_stern": -3.0,
                "helpful/my_stern/shaped": 0.0,
                "helpful/std": 0.375,
            },
        ),
    ]


def test_the_example_of_a_composed_reward_is_one() -> None:
    file = read_target(str(ROOT / "examples" / "rewards" / "composed.yaml"), {})
    description = build_scorer(file.services, file.server.model_copy(update={"num_processes": 1})).description
    assert description.name == "required_format_math_answer_agrees_length_penalty"
    assert (description.minimum, description.maximum) == (-1.0, 1.0)


def test_whatever_changes_scores_is_part_of_the_version() -> None:
    settings: list[dict[str, object]] = [
        {},
        {"weight": 2.0},
        {"clip": (0.0, 0.5)},
        {"normalise": {"mean": 0.0, "std": 2.0}},
        {"on_failure": "skip_part"},
        {"options": {"strip": False}},
    ]
    services = [RewardServiceConfig.model_validate({"name": "exact_match", **more}) for more in settings]
    versions = [build_scorer([service], RewardServerConfig()).description.version for service in services]
    assert versions[0] == "1*exact_match@1"
    assert len(set(versions)) == len(versions)
