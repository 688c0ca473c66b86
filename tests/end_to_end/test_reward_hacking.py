"""A reward that can be gamed, on real parts: the policy finds out, and the run holds itself until it is drained."""

import json
from pathlib import Path
from typing import Any

from tests.end_to_end.command import json_lines, started, trireme, write_config
from tests.end_to_end.tiny_run import run_sections

REWARDS = '''
def sevens(sample):
    """The proxy: pays for one character."""
    return sample.completion.count("7") / 12

def variety(sample):
    """What it stands for, and what is lost when one character is all there is."""
    return len(set(sample.completion)) / 12
'''


def test_a_policy_that_games_its_reward_is_paused_and_told_of(task: Path, tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(REWARDS)
    base = run_sections(task)
    sections = run_sections(
        task,
        train=base["train"] | {"num_steps": 200, "prompts_per_step": 8, "checkpoint_every": 0},
        learner=base["learner"] | {"lr": 1e-2, "kl_coefficient": 1e-3},
        evaluate={"prompts": str(task / "rows.jsonl"), "every": 1, "num_samples": 2},
        alarms={"divergence": {"threshold": 0.5, "window": 2}, "sign_flip": {"action": "warn"}},
    )
    watched = {"name": "rewards.py:variety", "label": "watched", "weight": 0.0}
    sections["reward"] = {"services": [{"name": "rewards.py:sevens", "label": "sevens"}, watched]}
    sections["gold"] = {"services": [{"name": "rewards.py:variety"}]}
    with started("train", write_config(tmp_path / "run.yaml", **sections), cwd=tmp_path) as running:
        running.wait_until(lambda: events(tmp_path / "run", "paused") != [], "an alarm that pauses")
        paused_at = events(tmp_path / "run", "alarm")[-1]["step"]
        told = json.loads(trireme("status", "run", "--json", cwd=tmp_path).output)
        assert (told["phase"], told["step"]) == ("paused", paused_at)
        assert "paused by an alarm, divergence: the gold reward is" in told["message"]
        drained = trireme("drain", "run", cwd=tmp_path)
        assert drained.code == 0, drained.output
        finished = running.finish()
    assert finished.code == 0, finished.output
    assert "`trireme resume run` lets the run go on" in finished.output
    assert {"reward/sevens", "reward/watched"} <= set(json_lines(tmp_path / "run" / "metrics.jsonl")[0])
    assert json_lines(tmp_path / "run" / "samples.jsonl")[0]["components"].keys() == {"sevens", "watched"}  # type: ignore[attr-defined]
    rows = [row for row in json_lines(tmp_path / "run" / "metrics.jsonl") if "gold/reward" in row]
    assert rows[-1]["step"] <= paused_at + 1, "what was under way may make one more step when the run is drained"
    assert rows[-1]["gold/proxy"] > rows[0]["gold/proxy"] and rows[-1]["gold/reward"] < rows[0]["gold/reward"]  # type: ignore[operator]
    assert "Proxy against gold" in (tmp_path / "run" / "report.html").read_text()


def events(run: Path, name: str) -> list[dict[str, Any]]:
    log = run / "events.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return [event for line in lines if (event := json.loads(line))["event"] == name]
