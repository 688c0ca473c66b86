"""Runs of the quickstart task over seeds: one warm-up a seed, then any number of `trireme train` from it.

It must not know what is compared. Invariant: what has its summary is not run again, so that an interrupted call goes
on where it was.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import stdev

QUICKSTART = Path("examples/quickstart")
WITH_DEMONSTRATIONS = "mixed.yaml"
ACCURACY = "evaluation/accuracy"
TIMEOUT_S = 1800


def warm_up(folder: Path, seed: int) -> None:
    """The task and the model that every run of this seed starts from."""
    if (folder / "sft" / "summary.json").exists():
        return
    _run(str(QUICKSTART / "prepare.py"), str(folder), "--seed", str(seed))
    _trireme(
        "sft", QUICKSTART / "sft.yaml", folder / "sft", seed,
        "--model.path", str(folder / "model"), "--data.prompts", str(folder / "train.jsonl"),
    )  # fmt: skip


def train(folder: Path, name: str, seed: int, *settings: str, config: str = "ppo.yaml") -> Path:
    """The folder of a finished run from the seed's warm-up, with these flags more than the quickstart's file has."""
    run = folder / name
    if config == WITH_DEMONSTRATIONS:
        settings = ("--demonstrations.prompts", str(folder / "train.jsonl"), *settings)
    if not (run / "summary.json").exists():
        _trireme(
            "train", QUICKSTART / config, run, seed,
            "--model.path", str(folder / "sft" / "export"), "--data.prompts", str(folder / "train.jsonl"),
            "--evaluate.prompts", str(folder / "held_out.jsonl"), *settings,
        )  # fmt: skip
    return run


def accuracies(steps: Sequence[dict[str, float]], summary: dict[str, float]) -> dict[int, float]:
    """Held-out accuracy at each evaluation, by step; step 0 is before training."""
    between = {number: step[ACCURACY] for number, step in enumerate(steps, start=1) if ACCURACY in step}
    return {0: summary["accuracy_before"], **between, len(steps): summary["accuracy_after"]}


def spread(values: Sequence[float]) -> float:
    """Standard deviation; 0 of a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def _trireme(command: str, config: Path, run: Path, seed: int, *settings: str) -> None:
    shutil.rmtree(run, ignore_errors=True)  # It was interrupted.
    _run("-m", "services.cli", command, str(config), "--run.dir", str(run), "--run.seed", str(seed), *settings)


def _run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)} failed with {done.returncode}:\n{done.stdout}\n{done.stderr}")
