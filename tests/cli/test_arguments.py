"""YAML and flags become a configuration, and each mistake one message."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings, SettingsConfigDict

from ppo_learner.config import LearnerConfig
from services.cli.arguments import load_config, take_switch
from services.contracts.errors import UserError
from services.contracts.settings import ModelConfig, Section
from services.control.config import PreferenceRunConfig, RewardModelRunConfig, RunConfig
from services.control.config_values import dotted_keys
from services.control.near_settings import ELSEWHERE


class Optimizer(Section):
    lr: float = 1e-3
    """Step size."""
    names: tuple[str, ...] = ()
    """Which."""


class Root(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    learner: Optimizer = Optimizer()
    model: ModelConfig


def load(*argv: str) -> Any:
    return load_config(Root, argv, prog="trireme test", summary="A test.", switches=("--resume",))


@pytest.fixture
def run_yaml(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text("learner: {lr: 1e-6, names: [a]}\nmodel: {path: here}\n")
    return str(path)


def test_flags_win_over_the_file_and_the_file_over_defaults(run_yaml: str) -> None:
    config = load(run_yaml, "--learner.lr", "0.5", "--model.dtype=float32")
    assert (config.learner.lr, config.learner.names) == (0.5, ("a",))
    assert (config.model.path, config.model.dtype) == ("here", "float32")


def test_a_flag_takes_a_setting_back_as_a_file_does() -> None:
    config = load_config(
        RunConfig, ["examples/quickstart/ppo.yaml", "--learner.value_clip", "null"], prog="", summary=""
    )
    assert config.learner.value_clip is None


FILE = "examples/quickstart/ppo.yaml"


@pytest.mark.parametrize("flags", [["--reward.services"], ["--reward", "{}", "--reward.services"]])
@pytest.mark.parametrize(
    "text", ["[{name: math_answer, options: {x: 1.0}}]", '[{"name": "math_answer", "options": {"x": 1e0}}]']
)
def test_a_list_on_the_command_line_is_written_as_in_a_file_or_in_json(flags: list[str], text: str) -> None:
    for given in ([*flags, text], [*flags[:-1], f"{flags[-1]}={text}"]):
        (service,) = load_config(RunConfig, [FILE, *given], prog="", summary="").reward.services
        assert (service.name, service.options) == ("math_answer", {"x": 1.0})


def test_null_is_an_empty_list_on_the_command_line_and_in_a_file(tmp_path: Path, run_yaml: str) -> None:
    flags = ["--reward.services", "null", "--reward.addresses", "[127.0.0.1:1]"]
    reward = load_config(RunConfig, [FILE, *flags], prog="", summary="").reward
    assert (reward.services, reward.addresses) == ((), ("127.0.0.1:1",))
    Path(run_yaml).write_text("learner: {names: null}\nmodel: {path: here}\n")
    assert load(run_yaml).learner.names == ()


def test_no_environment_variable_changes_a_run(run_yaml: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.control.config import RunConfig
    from services.control.evaluate_config import EvaluateConfig

    assert EvaluateConfig().limit is None
    monkeypatch.setenv("RUN", '{"seed": 7}')
    monkeypatch.setenv("run", '{"seed": 7}')
    config = RunConfig(model={"path": "m"}, data={"prompts": "d.jsonl"}, reward={"services": [{"name": "exact_match"}]})
    assert config.run.seed == 0


def test_an_algorithm_brings_its_settings_whether_a_flag_or_the_file_names_it_and_a_run_s_own_config_is_read_back(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.yaml"
    sections = {"model": {"path": "m"}, "data": {"prompts": "d"}, "reward": {"addresses": ["127.0.0.1:1"]}}

    def learner(section: dict[str, Any], *flags: str) -> LearnerConfig:
        path.write_text(yaml.safe_dump(sections | {"learner": section}))
        return load_config(RunConfig, [str(path), *flags], prog="trireme train", summary="A test.").learner

    expected = LearnerConfig(algorithm="grpo_process", lr=0.5)
    assert learner({"algorithm": "grpo_process", "lr": 0.5}) == expected
    assert learner({"lr": 0.5}, "--learner.algorithm", "grpo_process") == expected
    assert learner(expected.model_dump(mode="json")) == expected
    assert learner({"algorithm": "grpo_process"}, "--learner.total_weight", "0.5").total_weight == 0.5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learner.lrr", "1"], r"flag --learner\.lrr is not a setting; did you mean learner\.lr\?"),
        (["--lerner.lr", "1"], r"did you mean learner\.lr\?"),
        (["--lr", "1"], r"flag --lr is not a setting; did you mean learner\.lr\?"),
        (["--learner.learning_rate", "1"], r"did you mean learner\.lr\?"),
        (["--data.path", "here"], r"did you mean model\.path\?"),
        (["--learner.zeal", "1"], r"flag --learner\.zeal is not a setting; learner has lr, names$"),
        (["--zeal", "1"], r"the sections are learner, model$"),
        (["--resum"], r"flag --resum is not a setting; did you mean --resume\?"),
        (["--learner.lr", "fast"], r"learner\.lr: Input should be a valid number.*given: 'fast'"),
        (["--model.dtype", "float8"], r"model\.dtype: Input should be 'float32' or 'bfloat16'"),
        (
            ["--learner.names", "[a, {b: c]"],
            r"flag --learner\.names '\[a, \{b: c\]' cannot be read: .*as in a file, in one pair of quotes",
        ),
        (["--learner.lr"], r"the flags cannot be read: .*--learner\.lr: expected one argument"),
    ],
)
def test_a_wrong_flag_is_told_with_the_value_and_the_rule(run_yaml: str, flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(run_yaml, *flags)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "learner: {rl: 1}\nmodel: {path: m}",
            r"run\.yaml: key learner\.rl is not a setting; did you mean learner\.lr\?",
        ),
        ("modle: {path: m}", r"key modle is not a setting; did you mean model\?"),
        ("learner: {lr: 1}", "model: Field required"),
        ("- a list", "must be a mapping of sections, not list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_told_with_the_nearest_right_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load(str(path))


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("learner.learning_rate", "learner.lr"),
        ("learner.epochs", "learner.num_epochs"),
        ("learner.num_steps", "train.num_steps"),
        ("data.path", "data.prompts"),
        ("batch_size", "train.prompts_per_step"),
        ("rollout.enviroment.name", "rollout.environment.name"),
    ],
)
def test_a_key_of_another_section_or_tool_leads_to_the_setting(key: str, near: str) -> None:
    with pytest.raises(UserError, match=f"{key} is not a setting; did you mean {near}\\?"):
        load_config(RunConfig, [FILE, f"--{key}", "1"], prog="", summary="")


def test_every_name_of_another_tool_leads_to_a_setting() -> None:
    settings = {*dotted_keys(RunConfig), *dotted_keys(PreferenceRunConfig)}
    assert {setting for names in ELSEWHERE.values() for setting in names} <= settings
    assert not ELSEWHERE.keys() & settings


def test_a_configuration_of_another_command_is_known_as_that() -> None:
    with pytest.raises(UserError, match=r"no configuration of `trireme reward-model`, .* it is one of `trireme train`"):
        load_config(RewardModelRunConfig, [FILE], prog="trireme reward-model", summary="")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml cannot be read: No such file"):
        load("nowhere.yaml")


def test_help_gives_each_setting_with_its_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load("--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "--learner.lr" in shown
    assert "Step size. (default: 0.001)" in shown


def test_switches_are_taken_out() -> None:
    assert take_switch(["a.yaml", "--resume", "--x.y", "1"], "--resume") == (True, ["a.yaml", "--x.y", "1"])
    assert take_switch(["a.yaml"], "--resume") == (False, ["a.yaml"])
