"""A task, a tiny model and a configuration that trains it in seconds."""

import json
from pathlib import Path
from typing import Any

from tests.tiny import write_tiny_model

NUM_ROWS = 24
ONE_THREAD = {"cpus_per_learner_rank": 1}
"""As in the rest of the tests, of which others run at the same time."""
LONG_STEPS = 40
SAVE_EVERY = 5
"""Steps between two checkpoints of `long_run_sections`."""


def write_task(folder: Path) -> Path:
    """Write `model`, `rows.jsonl` with sums and their answers, and `digit_share.py` into a folder."""
    write_tiny_model(folder / "model")
    rows = [{"question": f"{n}+{n + 1}=", "answer": str(2 * n + 1)} for n in range(NUM_ROWS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "digit_share.py").write_text(DIGIT_SHARE)
    return folder


DIGIT_SHARE = '''"""A reward that a random model earns some of: the share of digits among the characters."""


def score(sample):
    return sum(character.isdigit() for character in sample.completion) / max(1, len(sample.completion))
'''


def run_sections(task: Path, **changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A configuration that trains the tiny model for a few seconds; `changes` are merged into its sections."""
    sections: dict[str, dict[str, Any]] = {
        "run": {"dir": "run"},
        "model": {"path": str(task / "model"), "dtype": "float32"},
        "data": {
            "prompts": str(task / "rows.jsonl"),
            "prompt_field": "question",
            "reference_field": "answer",
            "template": "plain",
        },
        "rollout": {"num_workers": 1, "samples_per_prompt": 4, "max_completion_tokens": 12, "kv_cache_gib": 0.1},
        "reward": {"services": [{"name": f"{task / 'digit_share.py'}:score"}]},
        "learner": {"algorithm": "ppo", "lr": 3e-3, "critic_lr": 3e-3, "num_minibatches": 2},
        "train": {"num_steps": 6, "prompts_per_step": 4, "checkpoint_every": 2},
        "cluster": ONE_THREAD,
    }
    return {name: sections.get(name, {}) | changes.get(name, {}) for name in {**sections, **changes}}


def long_run_sections(task: Path, **changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """One that trains for about twenty seconds, with completions that stay long; `changes` are merged likewise."""
    base = run_sections(
        task,
        rollout={"max_completion_tokens": 48},
        learner={"lr": 1e-4, "critic_lr": 1e-4},
        train={"num_steps": LONG_STEPS, "checkpoint_every": SAVE_EVERY},
    )
    return {name: base.get(name, {}) | changes.get(name, {}) for name in {**base, **changes}}
