"""The task of the reference case, and `trireme train` on it in a process of its own.

32 prompts of 16 random letters a step, 8 samples of each, long-tailed lengths, float32; every sample is rewarded by its
share of vowels. It must not know what a benchmark makes of a run's files.
"""

import json
import random
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.reference_model import write_reference_model

NUM_PROMPTS = 32
NUM_SAMPLES = 8
PROMPT_TOKENS = 16
MAX_COMPLETION_TOKENS = 192
TIMEOUT_S = 1800

REWARD = '''"""The share of vowels."""


def score(sample):
    return sum(character in "aeiou" for character in sample.completion) / max(1, len(sample.completion))
'''

Sections = Mapping[str, Mapping[str, Any]]  # Any: a setting's value


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRun:
    """A finished run: the metrics of its steps and the events of its ledger, in their order."""

    folder: Path
    steps: list[dict[str, float]]
    events: list[dict[str, Any]]  # Any: an event's fields

    def median(self, metric: str, *, skip: int = 1) -> float:
        """Over the steps after the first `skip`; 0 where no step has it."""
        return median([step[metric] for step in self.steps[skip:] if metric in step] or [0.0])

    def mean_tokens(self, *, skip: int = 1) -> float:
        """Completion tokens of a step."""
        tokens = [step["tokens_per_second"] * step["seconds/step"] for step in self.steps[skip:]]
        return sum(tokens) / len(tokens)


def write_task(folder: Path, num_steps: int) -> None:
    """Model, prompts for every step, and the reward."""
    write_reference_model(folder / "model")
    draw = random.Random(0)
    rows = ["".join(draw.choices(string.ascii_lowercase, k=PROMPT_TOKENS)) for _ in range(NUM_PROMPTS * num_steps)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    (folder / "vowels.py").write_text(REWARD)


def train(folder: Path, changes: Sections, *, during: Callable[[Path], None] = lambda run: None) -> TrainRun:
    """Run `trireme train` on the task of `folder`.

    Args:
        changes: settings that differ from the reference case, by section.
        during: called with the run's folder once the process has started; the process is awaited afterwards.
    """
    temporary = Path(tempfile.mkdtemp(dir=folder))
    run = temporary / "run"
    sections = _reference_sections(folder, run)
    for name, section in changes.items():
        sections[name] = {**sections.get(name, {}), **section}
    (temporary / "run.yaml").write_text(yaml.safe_dump(sections))
    with (temporary / "output.txt").open("w") as output:
        command = [sys.executable, "-m", "services.cli", "train", str(temporary / "run.yaml")]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            during(run)
            process.wait(TIMEOUT_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)
    if process.returncode != 0:
        raise SystemExit(f"trireme train failed with {process.returncode}:\n{(temporary / 'output.txt').read_text()}")
    return read_run(run)


def read_run(run: Path) -> TrainRun:
    return TrainRun(folder=run, steps=read_lines(run / "metrics.jsonl"), events=read_lines(run / "events.jsonl"))


def read_lines(path: Path) -> list[Any]:  # Any: JSON
    """The whole lines of a file that may be growing; none where it does not exist yet."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def verify(run: Path) -> None:
    """Assert that `trireme verify` finds every promise of the run kept."""
    command = [sys.executable, "-m", "services.cli", "verify", str(run)]
    verified = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def steps_done(run: Path) -> int:
    """How many steps the metrics of a live run hold."""
    return len(read_lines(run / "metrics.jsonl"))


def wait_for_step(run: Path, step: int, *, timeout_s: float) -> None:
    """Return once the metrics hold this step."""
    deadline = time.monotonic() + timeout_s
    while steps_done(run) < step:
        if time.monotonic() > deadline:
            raise SystemExit(f"step {step} of {run} was not there after {timeout_s:g} s; see output.txt beside it")
        time.sleep(0.1)


def _reference_sections(folder: Path, run: Path) -> dict[str, dict[str, Any]]:  # Any: a setting's value
    return {
        "run": {"dir": str(run)},
        "model": {"path": str(folder / "model"), "dtype": "float32", "max_length": 256},
        "data": {"prompts": str(folder / "prompts.jsonl"), "template": "plain", "shuffle": False},
        "rollout": {
            "num_workers": 2,
            "samples_per_prompt": NUM_SAMPLES,
            "max_completion_tokens": MAX_COMPLETION_TOKENS,
            "kv_cache_gib": 0.5,
        },
        "reward": {"services": [{"name": f"{folder / 'vowels.py'}:score"}]},
        "learner": {"algorithm": "grpo", "lr": 1e-6, "max_tokens_per_micro_batch": 2048},
        "train": {"num_steps": 5, "prompts_per_step": NUM_PROMPTS, "checkpoint_every": 0},
        "metrics": {"sinks": [], "samples_per_step": 0},
    }
