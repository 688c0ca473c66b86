"""Rewards of steps on real parts: from a reward service to the tokens that are trained."""

from pathlib import Path

from tests.end_to_end.command import json_lines, trireme, write_config
from tests.end_to_end.tiny_run import run_sections

DIGIT_BY_DIGIT = Path(__file__).parents[2] / "examples" / "rewards" / "digit_by_digit.py"


def test_a_run_is_trained_by_the_rewards_of_steps_alone(task: Path, tmp_path: Path) -> None:
    sections = run_sections(
        task,
        reward={"services": [{"name": f"{DIGIT_BY_DIGIT}:score"}]},
        learner={"algorithm": "grpo_process"},
        train={"num_steps": 12, "prompts_per_step": 8, "checkpoint_every": 0},
    )
    finished = trireme("train", write_config(tmp_path / "run.yaml", **sections), cwd=tmp_path)
    assert finished.code == 0, finished.output
    step_rewards = [float(str(row["process/step_reward"])) for row in json_lines(tmp_path / "run" / "metrics.jsonl")]
    print(step_rewards, [r["process/steps"] for r in json_lines(tmp_path / "run" / "metrics.jsonl")])
    for s in json_lines(tmp_path / "run" / "samples.jsonl")[:5]:
        print(s)
