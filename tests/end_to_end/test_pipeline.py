"""A recipe on real parts: interrupted in its first stage and in its last, gone on with to its end, and nothing to do
after that."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.command import json_lines, started, trireme
from tests.end_to_end.tiny_run import ONE_THREAD, run_sections

TWO_DIGITS = {"pattern": "[0-9]{2}", "where": "anywhere"}
WARMUP_STEPS, ALIGN_STEPS = 60, 20


def recipe(task: Path) -> dict[str, Any]:
    """Supervised training, reinforcement learning on it, the best completions of that, learning these from it, and
    reinforcement learning on what learnt them, with two rewards."""
    rl = run_sections(task, train={"num_steps": 2, "checkpoint_every": 0})
    del rl["run"]
    reasoning = {"path": "${reason}/export", "dtype": "float32"}
    data = {"prompts": str(task / "rows.jsonl"), "prompt_field": "question", "response_field": "answer"}
    mixed = [*rl["reward"]["services"], {"name": "regular_expression", "weight": 0.2, "options": TWO_DIGITS}]
    best = {"prompts": "${best}/demonstrations.jsonl", "prompt_field": "prompt", "response_field": "response"}
    configs: dict[str, tuple[str, dict[str, Any]]] = {
        "warmup": (
            "sft",
            {
                "model": rl["model"],
                "data": data | {"template": "plain"},
                "learner": {"lr": 1e-3},
                "train": {"num_steps": WARMUP_STEPS, "prompts_per_step": 8},
                "cluster": ONE_THREAD,
            },
        ),
        "reason": ("train", rl | {"model": {"path": "${warmup}/export", "dtype": "float32"}}),
        "best": ("sample", rl | {"model": reasoning, "select": {"max_per_prompt": 2, "keep_unfinished": True}}),
        "small": (
            "sft",
            {
                "model": rl["model"],
                "data": best | {"template": "plain"},
                "learner": {"teacher": {"path": "${reason}/export", "weight": 0.5}},
                "train": {"num_steps": 2, "prompts_per_step": 8},
                "cluster": ONE_THREAD,
            },
        ),
        "align": (
            "train",
            rl
            | {
                "model": {"path": "${small}/export", "dtype": "float32"},
                "reward": {"services": mixed},
                "train": rl["train"] | {"num_steps": ALIGN_STEPS},
            },
        ),
    }
    stages = [{"name": name, "command": command, "config": config} for name, (command, config) in configs.items()]
    return {"run": {"dir": "runs"}, "stages": stages}


def test_a_recipe_is_interrupted_goes_on_and_ends(task: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe(task)))
    runs = tmp_path / "runs"
    is_interrupted_after_a_step(runs / "warmup", cwd=tmp_path)
    assert not (runs / "reason").exists()
    is_interrupted_after_a_step(runs / "align", runs / "small" / "stage.json", cwd=tmp_path)
    assert 0 < len(json_lines(runs / "align" / "metrics.jsonl")) < ALIGN_STEPS

    finished = trireme("pipeline", "recipe.yaml", cwd=tmp_path)
    assert finished.code == 0, finished.output
    assert finished.output.count("finished before, skipped") == 4
    assert "trireme train, resumed" in finished.output
    for stage, num_steps in (("warmup", WARMUP_STEPS), ("align", ALIGN_STEPS)):
        metrics = json_lines(runs / stage / "metrics.jsonl")
        assert [row["step"] for row in metrics] == list(range(1, num_steps + 1))
    has_both_rewards(runs / "align")
    summary = json.loads((runs / "summary.json").read_text())
    assert [row["name"] for row in summary["stages"]] == ["warmup", "reason", "best", "small", "align"]
    selection = json.loads((runs / "best" / "summary.json").read_text())
    demonstrations = json_lines(runs / "best" / "demonstrations.jsonl")
    assert len(demonstrations) == selection["num_kept"] > 0
    assert selection["num_samples"] == selection["num_kept"] + sum(selection["dropped"].values())
    last = json_lines(runs / "small" / "metrics.jsonl")[-1]
    assert float(str(last["teacher_divergence"])) > 0

    again = trireme("pipeline", "recipe.yaml", cwd=tmp_path)
    assert again.code == 0, again.output
    assert again.output.count("finished before, skipped") == 5


def is_interrupted_after_a_step(stage: Path, *before: Path, cwd: Path) -> None:
    """Begin the recipe or go on with it, wait for the files `before` and for a step of a stage, and press Ctrl-C."""
    metrics = stage / "metrics.jsonl"
    with started("pipeline", "recipe.yaml", cwd=cwd) as running:
        for path in before:
            running.wait_until(path.exists, str(path))
        running.wait_until(lambda: metrics.exists() and metrics.stat().st_size > 0, f"a step of {stage.name}")
        running.interrupt()
        stopped = running.finish()
    assert stopped.code == 130, stopped.output
    assert f"stage {stage.name} was interrupted" in stopped.output
    assert "go on with: trireme pipeline recipe.yaml" in stopped.output
    assert not (stage / "stage.json").exists()


def has_both_rewards(run: Path) -> None:
    """Each part of the reward is measured, before the interruption and after it, and the whole is their sum."""
    rows = [{name: float(str(value)) for name, value in row.items()} for row in json_lines(run / "metrics.jsonl")]
    for row in rows:
        mixed = row["reward/digit_share_score"] + 0.2 * row["reward/regular_expression"]
        assert row["reward/mean"] == pytest.approx(mixed, abs=1e-6)
    for part in ("digit_share_score", "regular_expression"):
        assert len({row[f"reward/{part}"] for row in rows}) > 1
