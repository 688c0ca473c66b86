"""Rewards of steps on real parts: from a reward service to the tokens that are trained, and labels from a policy."""

import json
from pathlib import Path

import pytest

from rollout_workers.reward_rows import RewardDataConfig, read_judged_row
from tests.end_to_end.command import json_lines, trireme, write_config
from tests.end_to_end.tiny_run import run_sections

DIGIT_BY_DIGIT = Path(__file__).parents[2] / "examples" / "rewards" / "digit_by_digit.py"


@pytest.fixture(scope="module")
def trained(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the rewards of digits alone."""
    folder = tmp_path_factory.mktemp("process")
    sections = run_sections(
        task,
        rollout={"samples_per_prompt": 8},
        reward={"services": [{"name": f"{DIGIT_BY_DIGIT}:score"}]},
        learner={"algorithm": "grpo_process", "lr": 1e-2},
        train={"num_steps": 12, "prompts_per_step": 8, "checkpoint_every": 0},
    )
    finished = trireme("train", write_config(folder / "run.yaml", **sections), cwd=folder)
    assert finished.code == 0, finished.output
    return folder / "run"


def test_a_policy_learns_from_the_rewards_of_steps(trained: Path) -> None:
    rewards = [float(str(row["process/step_reward"])) for row in json_lines(trained / "metrics.jsonl")]
    print(rewards)
    assert sum(rewards[-3:]) > 1.5 * sum(rewards[:3])


def test_each_step_is_credited_to_the_token_that_ends_it(trained: Path) -> None:
    for sample in json_lines(trained / "samples.jsonl"):
        steps, completion = sample["steps"], str(sample["completion"])
        assert isinstance(steps, list) and len(steps) == len(completion)
        num_prompt_tokens = len(str(sample["prompt"]))
        tokens = [step["token"] - num_prompt_tokens for step in steps]
        assert tokens[:-1] == list(range(len(completion) - 1))  # One token a character,
        assert all(token >= len(completion) - 1 for token in tokens[-1:])  # and the end of sequence with the last.


def test_labels_are_made_by_real_workers_and_gone_on_with(trained: Path, task: Path, tmp_path: Path) -> None:
    sections = run_sections(
        task,
        run={"dir": "labels"},
        model={"path": str(trained / "export")},
        data={"limit": 4},
        rollout={"samples_per_prompt": 2},
        labels={"separator": "1", "continuations": 4, "max_steps": 3},
        evaluate={"threshold": 0.2},
    )
    config = write_config(tmp_path / "run.yaml", **sections)
    finished = trireme("label-steps", config, cwd=tmp_path)
    assert finished.code == 0, finished.output
    summary = json.loads(finished.output.splitlines()[-1])
    rows = json_lines(tmp_path / "labels" / "step_labels.jsonl")
    print(summary, rows[:3])
    assert summary["completions"] == len(rows) <= 8
    data = RewardDataConfig(examples="")
    for row in rows:
        judged = read_judged_row(row, data, form="steps", any_label=False, where="")
        assert len(judged.targets) == len(judged.step_ends) <= 3
    assert any(0 < step["label"] < 1 for row in rows for step in row["steps"])  # type: ignore[attr-defined] # JSON
