"""A recipe on real parts: interrupted in its first stage, gone on with to its end, and nothing to do after that."""

import json
from pathlib import Path
from typing import Any

from tests.end_to_end.command import json_lines, started, trireme
from tests.end_to_end.tiny_run import run_sections


def recipe(task: Path) -> dict[str, Any]:
    """Supervised training, reinforcement learning on it, the best completions of that, and learning these from it."""
    rl = run_sections(task, train={"num_steps": 2, "checkpoint_every": 0})
    del rl["run"]
    reasoning = {"path": "${reason}/export", "dtype": "float32"}
    data = {"prompts": str(task / "rows.jsonl"), "prompt_field": "question", "response_field": "answer"}
    best = {"prompts": "${best}/demonstrations.jsonl", "prompt_field": "prompt", "response_field": "response"}
    configs: dict[str, tuple[str, dict[str, Any]]] = {
        "warmup": (
            "sft",
            {
                "model": rl["model"],
                "data": data | {"template": "plain"},
                "learner": {"lr": 1e-3},
                "train": {"num_steps": 60, "prompts_per_step": 8},
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
            },
        ),
    }
    stages = [{"name": name, "command": command, "config": config} for name, (command, config) in configs.items()]
    return {"run": {"dir": "runs"}, "stages": stages}


def test_a_recipe_is_interrupted_goes_on_and_ends(task: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe(task)))
    metrics = tmp_path / "runs" / "warmup" / "metrics.jsonl"
    with started("pipeline", "recipe.yaml", cwd=tmp_path) as running:
        running.wait_until(lambda: metrics.exists() and metrics.stat().st_size > 0, "the first step")
        running.interrupt()
        stopped = running.finish()
    assert stopped.code == 130, stopped.output
    assert "go on with: trireme pipeline recipe.yaml" in stopped.output
    assert not (tmp_path / "runs" / "reason").exists()

    finished = trireme("pipeline", "recipe.yaml", cwd=tmp_path)
    assert finished.code == 0, finished.output
    assert [row["step"] for row in json_lines(metrics)] == list(range(1, 61))
    summary = json.loads((tmp_path / "runs" / "summary.json").read_text())
    assert [row["name"] for row in summary["stages"]] == ["warmup", "reason", "best", "small"]
    selection = json.loads((tmp_path / "runs" / "best" / "summary.json").read_text())
    demonstrations = json_lines(tmp_path / "runs" / "best" / "demonstrations.jsonl")
    assert len(demonstrations) == selection["num_kept"] > 0
    assert selection["num_samples"] == selection["num_kept"] + sum(selection["dropped"].values())
    last = json_lines(tmp_path / "runs" / "small" / "metrics.jsonl")[-1]
    assert float(str(last["teacher_divergence"])) > 0

    again = trireme("pipeline", "recipe.yaml", cwd=tmp_path)
    assert again.code == 0, again.output
    assert again.output.count("finished before, skipped") == 4
