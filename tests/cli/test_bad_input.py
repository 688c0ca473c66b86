"""Wrong input ends a command at once, with exit code 2 and one message that says what to do; nothing was started."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from services.cli.__main__ import main
from services.control.event_log import read_events
from services.control.judging import JobConfig, open_job
from services.control.run_folder import METRICS_FILE
from tests.end_to_end.command import write_config
from tests.end_to_end.tiny_run import run_sections
from tests.tiny import CHARACTERS, write_tiny_model


@pytest.fixture
def sections(task: Path, tmp_path: Path) -> dict[str, dict[str, Any]]:
    return run_sections(task, run={"dir": str(tmp_path / "run")})


def refuse(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one message that a refused command writes."""
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("flags", "messages"),
    [
        (["--learner.algoritm", "ppo"], ["flag --learner.algoritm is not a setting", "learner.algorithm?"]),
        (["--control.address", "0.0.0.0:7000"], ["control.address '0.0.0.0:7000' reaches beyond this machine"]),
        (["--control.tls_certificate", "a.crt", "--control.tls_key", "a.key"], ["a.crt", "a.key cannot be used"]),
        (
            ["--reward.services", "null", "--reward.addresses", "http://127.0.0.1:5000"],
            ["reward address 'http://127.0.0.1:5000' is a URL, and HOST:PORT is wanted; leave out http://"],
        ),
        (["--reward.token_file", "nowhere"], ["reward.token_file cannot be read: No such file"]),
        (["--reward.tls_ca", "nowhere.pem"], ["reward.tls_ca nowhere.pem cannot be used"]),
        (["--reward.server.token_variable", "UNSET"], ["reward.server.token_variable leads to no token"]),
        (["--learner.algorithm", "pppo"], ["learner.algorithm", "'pppo'", "ppo, grpo"]),
        (["--model.path", "/nowhere/model"], ["model.path '/nowhere/model' is no folder with a config.json"]),
        (["--data.prompts", "nowhere.jsonl"], ["data file 'nowhere.jsonl' does not exist"]),
        (["--data.prompt_field", "prompt"], ["row 0: no column 'prompt'; the row has ['answer', 'question']"]),
        (
            ["--data.prompt_format", "{question"],
            ["data.prompt_format", "'{question': expected '}' before end of string"],
        ),
        (["--data.prompt_format", "{answer:d}"], ["row 0: data.prompt_format '{answer:d}' does not suit the row"]),
        (["--data.template", "chat"], ["has no chat template; set data.template to plain"]),
        (["--data.max_prompt_tokens", "3"], ["row 0: the prompt has 4 tokens and 3 fit", "data.long_prompts"]),
        (["--model.max_length", "12"], ["rollout.max_completion_tokens is 12", "at most 12 tokens"]),
        (["--model.max_length", "9999"], ["model.max_length is 9999", "takes at most 512 tokens"]),
        (
            ["--rollout.environment.name", "calculater"],
            ["no environment 'calculater'; built in are calculator, python;"],
        ),
        (["--rollout.environment.name", "no.py:respond"], ["there is no environment file no.py (looked in"]),
        (["--weights.transport", "pigeon"], ["weights.transport is 'pigeon'; there are shared_memory, disk"]),
        (["--train.max_staleness", "-1"], ["train.max_staleness", "greater than or equal to 0"]),
        (
            ["--learner.algorithm", "grpo", "--rollout.samples_per_prompt", "1"],
            ["learner.algorithm grpo compares the completions of a prompt, and rollout.samples_per_prompt is 1; set"],
        ),
        (["--metrics.sinks", '["paper"]'], ["metrics.sinks", "'paper'", "tensorboard"]),
        (["--resume"], ["holds no run to go on with"]),
    ],
)
def test_a_wrong_setting_is_refused(
    sections: dict[str, dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    messages: list[str],
) -> None:
    error = refuse(capsys, "train", write_config(tmp_path / "run.yaml", **sections), *flags)
    for message in messages:
        assert message in error


def test_completions_without_their_column_are_refused_before_anything_is_labelled(
    sections: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "run.yaml", **sections)
    error = refuse(capsys, "label-steps", config, "--labels.completion_field", "solution")
    assert "row 0, column 'solution': expected a completion or a list of completions, found None" in error


def test_a_reward_that_does_not_exist_is_refused_with_those_that_do(
    sections: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections["reward"] = {"services": [{"name": "exact_mtach"}]}
    error = refuse(capsys, "train", write_config(tmp_path / "run.yaml", **sections))
    assert "there is no reward 'exact_mtach'; built in are exact_match" in error


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("import nothing_like_this", "score", "does not load: ModuleNotFoundError"),
        ("def score(sample:", "score", "does not load: SyntaxError"),
        ("def score(sample): return 1.0", "scores", "has no 'scores'"),
        ("def score(): return 1.0", "score", "is called with a sample: too many positional arguments"),
    ],
)
def test_a_dry_run_loads_the_rewards_in_a_process_of_their_own(
    sections: dict[str, dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    name: str,
    message: str,
) -> None:
    (tmp_path / "broken.py").write_text(text)
    sections["gold"] = {"services": [{"name": f"{tmp_path / 'broken.py'}:{name}"}]}
    sections["evaluate"] = {"prompts": sections["data"]["prompts"], "every": 2}
    error = refuse(capsys, "train", write_config(tmp_path / "run.yaml", **sections), "--dry-run")
    assert error.startswith("error: gold.services: the reward server of this run did not start (exit code 2): ")
    assert message in error
    assert error.count("\n") == 1
    assert "user_reward_broken" not in sys.modules


def test_a_dry_run_says_that_nobody_answers_yet_and_shows_the_plan(
    sections: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections["reward"] = {"addresses": ["127.0.0.1:1"]}
    assert main(["train", write_config(tmp_path / "run.yaml", **sections), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "learner rank 0" in shown
    assert "nobody answers at 127.0.0.1:1 yet (reward.addresses)" in shown


def test_rewards_come_from_one_place(
    sections: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections["reward"] = {"addresses": ["127.0.0.1:1"], "services": [{"name": "exact_match"}]}
    error = refuse(capsys, "train", write_config(tmp_path / "run.yaml", **sections))
    assert "either reward.addresses" in error


def test_plaintext_to_another_machine_is_refused(
    sections: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections["reward"] = {"addresses": ["rewards.example:50051"]}
    error = refuse(capsys, "train", write_config(tmp_path / "run.yaml", **sections))
    assert "rewards.example:50051" in error
    assert "allow_plaintext: true if the network between is trusted" in error


def test_a_tokenizer_of_another_model_is_refused(
    sections: dict[str, dict[str, Any]], task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    model = tmp_path / "smaller"
    shutil.copytree(task / "model", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 10}))
    error = refuse(capsys, "train", write_config(tmp_path / "run.yaml", **sections), "--model.path", str(model))
    assert "tokens and model" in error
    assert "has room for 10" in error


def test_a_folder_with_a_run_in_it_is_not_written_over(
    sections: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / METRICS_FILE).write_text('{"step": 1, "time_s": 1.0}\n')
    error = refuse(capsys, "train", write_config(tmp_path / "run.yaml", **sections))
    assert "already holds a run; go on with --resume" in error


def test_a_folder_with_the_verdicts_of_a_judge_is_not_written_over(
    sections: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_job(JobConfig(dir=tmp_path / "run"), work="verdicts"):
        pass
    error = refuse(capsys, "train", write_config(tmp_path / "run.yaml", **sections))
    assert "holds the work of a job that labels or revises; set run.dir" in error
    assert [event["event"] for event in read_events(tmp_path / "run")] == ["began"]


def test_a_cluster_that_is_not_there_is_named(
    sections: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "run.yaml", **sections)
    error = refuse(capsys, "train", config, "--cluster.address", "127.0.0.1:1")
    assert "no Ray cluster answers at cluster.address='127.0.0.1:1'" in error


def test_a_model_whose_download_broke_off_is_told_before_anything_starts(
    sections: dict[str, dict[str, Any]], task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(task / "model", tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    command = ("train", write_config(tmp_path / "run.yaml", **sections), "--model.path", str(broken))
    assert f"model.path: {weights} is broken off or damaged" in refuse(capsys, *command)
    weights.unlink()
    assert "holds no weights" in refuse(capsys, *command)


def test_an_unknown_command_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    error = refuse(capsys, "trian")
    assert "no command 'trian'" in error
    assert "train" in error


def test_a_dry_run_shows_settings_processes_and_the_first_prompt(
    sections: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", write_config(tmp_path / "run.yaml", **sections), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for expected in ("samples_per_prompt: 4", "rollout worker 0", "learner rank 0", "24 prompts", "0+1="):
        assert expected in shown
    assert not (tmp_path / "run").exists()


MIX = {"prompt_field": "question", "response_field": "answer", "template": "plain", "rows_per_step": 8}


@pytest.mark.parametrize(
    ("settings", "messages"),
    [
        ({"prompts": "nowhere.jsonl"}, ["section demonstrations", "data file 'nowhere.jsonl' does not exist"]),
        ({"prompts": "empty.jsonl"}, ["section demonstrations", "empty.jsonl"]),
        ({"prompt_field": "prompt"}, ["section demonstrations", "row 0: no column 'prompt'", "'answer', 'question'"]),
        ({"response_field": "reply"}, ["section demonstrations", "row 0: no column 'reply'"]),
        ({"response_field": None}, ["demonstrations need response_field", "or text_field"]),
        ({"prompts": "long.jsonl"}, ["section demonstrations", "row 1: it has 605 tokens and the limit is 512"]),
        ({"messages_field": "turns"}, ["response_field 'answer' the answers", "set one of them"]),
        ({"coefficient": 0}, ["coefficient 0 learns from no row"]),
        ({"coefficient": -1}, ["demonstrations.coefficient", "greater than or equal to 0"]),
        ({"coefficient": float("inf")}, ["demonstrations.coefficient", "finite"]),
        ({"final_coefficient": 0.5}, ["final_coefficient has no effect with schedule: constant"]),
        ({"schedule_steps": 5}, ["schedule_steps has no effect with schedule: constant"]),
        ({"schedule": "cosine"}, ["demonstrations.schedule", "'constant' or 'linear'"]),
        ({"rl_weight": "complement"}, ["goes from 1 to 1", "use rl_weight: one"]),
        ({"rl_weight": "complement", "schedule": "linear", "coefficient": 2}, ["goes from 2 to 0", "may not pass 1"]),
        ({"rows": 5}, ["demonstrations.rows"]),
        ({"rows_per_step": 1}, ["rows_per_step 1 is shared out to the 2 updates of a step"]),
    ],
)
def test_demonstrations_that_cannot_be_learnt_are_refused(
    sections: dict[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, Any],
    messages: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").write_text("")
    rows = [{"question": "1+1=", "answer": "2"}, {"question": "1+1=", "answer": "2" * 600}]
    Path("long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections["demonstrations"] = MIX | {"prompts": sections["data"]["prompts"]} | settings
    error = refuse(capsys, "train", write_config(tmp_path / "run.yaml", **sections), "--dry-run")
    for message in messages:
        assert message in error


def test_a_conversation_without_a_learnt_turn_is_refused_as_a_demonstration(
    sections: dict[str, dict[str, Any]], task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_tiny_model(tmp_path / "model")
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    learnt, given = ({"role": "assistant", "content": "2", "train": train} for train in (True, False))
    rows = [{"turns": [{"role": "user", "content": "1+1="}, turn]} for turn in (learnt, given)]
    (tmp_path / "turns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections["demonstrations"] = {"prompts": str(tmp_path / "turns.jsonl"), "messages_field": "turns"}
    config = write_config(tmp_path / "run.yaml", **sections)
    capsys.readouterr()
    error = refuse(capsys, "train", config, "--model.path", str(model), "--dry-run")
    assert "row 1" in error


def test_a_dry_run_counts_the_demonstrations_beside_the_rollouts(
    sections: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections["demonstrations"] = MIX | {"prompts": sections["data"]["prompts"], "limit": 7}
    assert main(["train", write_config(tmp_path / "run.yaml", **sections), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "7 demonstrations, 8 beside the rollouts of each step at a coefficient of 1" in shown
    assert "learnt     2  '1<eos>'" in shown


def test_a_dry_run_of_supervised_training_shows_which_tokens_are_learnt(
    sections: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {name: sections[name] for name in ("run", "model")}
    data = sections["data"] | {"response_field": "answer"}
    config = write_config(tmp_path / "sft.yaml", **kept, data={k: v for k, v in data.items() if "reference" not in k})
    assert main(["sft", config, "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "24 demonstrations of" in output
    assert "given      4  '0+1='" in output
    assert "learnt     2  '1<eos>'" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("characters", "overrides", "messages"),
    [
        ("abc", {}, ["has another tokenizer than model.path", "learn its answers instead"]),
        (CHARACTERS, {"max_position_embeddings": 4}, ["the longest demonstration has 9 tokens", "takes at most 4"]),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    sections: dict[str, dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    characters: str,
    overrides: dict[str, int],
    messages: list[str],
) -> None:
    write_tiny_model(tmp_path / "teacher", characters=characters, **overrides)
    config = write_config(
        tmp_path / "sft.yaml",
        model=sections["model"],
        data={"prompts": sections["data"]["prompts"], "prompt_field": "question", "template": "plain"},
        learner={"teacher": {"path": str(tmp_path / "teacher")}},
    )
    capsys.readouterr()
    error = refuse(capsys, "sft", config, "--data.response_field", "answer")
    for message in messages:
        assert message in error
    error = refuse(capsys, "sft", config, "--data.response_field", "answer", "--learner.teacher.path", "./nowhere")
    assert "learner.teacher.path './nowhere' is no folder" in error
