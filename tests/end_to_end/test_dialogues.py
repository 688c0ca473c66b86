"""Dialogues on real parts: the example is learnt, and an environment that breaks in mid-run costs nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rollout_workers.prompts import RowOrder
from tests.end_to_end.command import json_lines, trireme, write_config
from tests.end_to_end.tiny_run import NUM_ROWS, run_sections

ROOT = Path(__file__).parents[2]
FRAGILE = '''
"""Runs what the policy says as a program and answers with a digit; breaks on one prompt while a file says so."""

from pathlib import Path

from rollout_workers.environments.python_tool import python


def respond(dialogue):
    flag = Path(__file__).parent / "broken"
    if flag.exists() and dialogue.reference["answer"] == flag.read_text():
        raise ConnectionError("the tool is away")
    printed = python(dialogue, require_fence=False)
    return str(len(printed) % 10) if dialogue.number < 3 else None
'''


def example(task: Path, kind: str, **changes: object) -> list[str]:
    """The example's configuration, with everything that it reads and writes in another folder."""
    text = (
        (ROOT / f"examples/dialogue/{kind}.yaml")
        .read_text()
        .replace("examples/dialogue", str(ROOT / "examples/dialogue"))
    )
    path = task / f"{kind}.yaml"
    path.write_text(text.replace("runs/dialogue", str(task)))
    flags = {"cluster.cpus_per_learner_rank": 1} | changes
    return [str(path), *(part for name, value in flags.items() for part in (f"--{name}", str(value)))]


def test_the_policy_of_the_example_learns_to_listen(tmp_path: Path) -> None:
    for name in ("quickstart", "dialogue"):
        script = str(ROOT / "examples" / name / "prepare.py")
        subprocess.run([sys.executable, script, str(tmp_path / "task")], check=True, timeout=120)
    short: dict[str, object] = {
        "train.num_steps": 55,
        "train.prompts_per_step": 28,
        "rollout.num_workers": 1,
        "learner.lr_schedule": "constant",
        "learner.lr": 2e-3,
        "evaluate.every": 0,
    }
    for command, changes in (("sft", {}), ("train", short)):
        finished = trireme(command, *example(tmp_path, command, **changes), cwd=tmp_path)
        assert finished.code == 0, finished.output
    assert trireme("verify", str(tmp_path / "train"), cwd=tmp_path).code == 0

    rows = json_lines(tmp_path / "train" / "metrics.jsonl")
    earned = [float(str(row["reward/mean"])) for row in rows]
    assert sum(earned[:5]) / 5 < 3 / 7  # Who does not listen finds three of seven.
    assert sum(earned[-5:]) / 5 > 3 / 7 + 0.05
    assert all(1.0 <= float(str(row["turns/mean"])) <= 3.0 for row in rows)


@pytest.fixture
def sections(task: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "fragile.py").write_text(FRAGILE)
    return run_sections(
        task,
        rollout={
            "environment": {"name": "fragile.py:respond"},
            "max_completion_tokens": 24,
            "stop": ["a", "e", "1", "5", "9", "."],
        },
    )


def weights(run: Path) -> bytes:
    return (run / "export" / "model.safetensors").read_bytes()


def test_a_run_whose_environment_broke_goes_on_to_the_same_weights(sections: dict[str, Any], tmp_path: Path) -> None:
    order = RowOrder(NUM_ROWS, seed=0, shuffle=True)
    (tmp_path / "broken").write_text(str(2 * order.at(13)[1] + 1))  # A prompt of the fourth step.
    config = write_config(tmp_path / "run.yaml", **sections)

    broken = trireme("train", config, cwd=tmp_path)
    (tmp_path / "broken").unlink()

    assert broken.code == 1, broken.output
    assert "did not come in 3 tries; the last: ConnectionError: the tool is away" in broken.output
    assert "--resume" in broken.output
    resumed = trireme("train", config, "--resume", cwd=tmp_path)
    assert resumed.code == 0, resumed.output
    two = ["--rollout.num_workers", "2", "--run.dir", "undisturbed"]
    undisturbed = trireme("train", config, *two, cwd=tmp_path)
    assert undisturbed.code == 0, undisturbed.output

    assert weights(tmp_path / "run") == weights(tmp_path / "undisturbed")
    for run in ("run", "undisturbed"):
        verified = trireme("verify", run, cwd=tmp_path)
        assert verified.code == 0, verified.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["num_samples"] == 6 * 4 * 4
