"""A model is averaged with its start and held against it, by the commands that a user types."""

import json
from pathlib import Path

from tests.end_to_end.command import trireme, write_config
from tests.end_to_end.tiny_run import run_sections
from tests.tiny import write_tiny_model


def test_an_average_is_compared_with_its_start_and_a_gate_says_no(task: Path, tmp_path: Path) -> None:
    end = write_tiny_model(tmp_path / "end", seed=1)
    models = ["--start", str(task / "model"), "--end", str(end)]
    averaged = trireme("average", *models, "--alphas", "0.5", "--run.dir", "averaged", cwd=tmp_path)
    assert averaged.code == 0, averaged.output
    rows = {"prompts": str(task / "rows.jsonl")}
    suites = [
        {"name": "digits", **rows, "metric": "reward"},
        # A share of digits is never 2: nothing is right before or after, of which 24 prompts are no proof.
        {"name": "never", **rows, "threshold": 2.0, "gate": {"breach": "possible"}},
    ]
    sections = run_sections(task, evaluate={"suites": suites}, model={"path": "averaged/export"})
    config = write_config(tmp_path / "run.yaml", **sections)
    evaluated = trireme("evaluate", config, "--against", str(task / "model"), cwd=tmp_path)
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (found["model"], found["against"]) == ("averaged/export", str(task / "model"))
    digits, never = found["evaluations"]
    assert round(digits["after"], 4) == found["suites"]["digits"]["reward"]
    assert digits["before"] != digits["after"], "another model, other completions"
    assert (digits["verdict"], never["verdict"], never["num_prompts"]) == ("not_gated", "breach", 24)
    assert never["interval_95"][0] < 0 < never["interval_95"][1]
    assert evaluated.code == 3, evaluated.output
    assert "never fell further than evaluate's gates let it" in evaluated.output
