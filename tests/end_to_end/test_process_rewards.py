"""Rewards of steps on real parts: from a reward service to the tokens that are trained, and labels from a policy."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from rollout_workers.reward_rows import RewardDataConfig, read_judged_row
from tests.end_to_end.command import json_lines, trireme, write_config
from tests.end_to_end.tiny_run import run_sections

DIGIT_BY_DIGIT = Path(__file__).parents[2] / "examples" / "rewards" / "digit_by_digit.py"


@pytest.fixture(scope="module")
def trained(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learns from the rewards of digits; the totals count for nothing."""
    folder = tmp_path_factory.mktemp("process")
    sections = run_sections(
        task,
        rollout={"samples_per_prompt": 8},
        reward={"services": [{"name": f"{DIGIT_BY_DIGIT}:score"}]},
        learner={"algorithm": "grpo_process", "lr": 5e-3},
        train={"num_steps": 12, "prompts_per_step": 8, "checkpoint_every": 0},
    )
    finished = trireme("train", write_config(folder / "run.yaml", **sections), cwd=folder)
    assert finished.code == 0, finished.output
    return folder / "run"


def test_a_policy_learns_from_the_rewards_of_steps(trained: Path) -> None:
    rewards = [float(str(row["process/step_reward"])) for row in json_lines(trained / "metrics.jsonl")]
    assert sum(rewards[6:]) > 1.5 * sum(rewards[:6])


def test_each_step_is_credited_to_the_token_that_ends_it(trained: Path) -> None:
    whole = 0
    for sample in json_lines(trained / "samples.jsonl"):
        first, completion = len(str(sample["prompt"])), str(sample["completion"])  # One token a character.
        tokens = [step["token"] - first for step in sample["steps"]]  # type: ignore[attr-defined] # JSON
        assert len(tokens) == len(completion)
        assert all(0 <= before < after for before, after in pairwise(tokens))
        if len(completion) == 12:  # The limit: neither special tokens in between nor an end of sequence.
            assert tokens == list(range(12))
            whole += 1
    assert whole > 0


def test_real_workers_continue_from_each_step_and_label_it(task: Path, tmp_path: Path) -> None:
    sections = run_sections(
        task,
        run={"dir": "labels"},
        data={"limit": 6},
        rollout={"samples_per_prompt": 4, "max_completion_tokens": 24},
        labels={"separator": "e", "continuations": 6},
        evaluate={"threshold": 0.2},
    )
    finished = trireme("label-steps", write_config(tmp_path / "run.yaml", **sections), cwd=tmp_path)
    assert finished.code == 0, finished.output
    summary = json.loads(finished.output.splitlines()[-1])
    rows = json_lines(tmp_path / "labels" / "step_labels.jsonl")
    assert 12 < summary["completions"] == len(rows) <= 24
    data = RewardDataConfig(examples="", step_separator="e")
    labels = []
    for row in rows:
        judged = read_judged_row(row, data, form="steps", any_label=False, where="")
        assert judged.step_ends[-1] == len(str(row["completion"]))
        labels += judged.targets[:-1]
    assert len(labels) > 6
    assert any(0 < label < 1 for label in labels)
