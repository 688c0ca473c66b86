"""Measures what the simulator is calibrated and checked with: `trireme train` on the reference case.

Two synchronous runs of one worker (batches of 32 and 8 prompts) for the fit; 2 and 4 workers, synchronous, and 1, 2 and
4 asynchronous, for the check. The learner has one thread in each, so that all processes are alike.

    python -m benchmarks.calibrate [--steps 8] [--staleness 0 1] [--output benchmarks/calibration.json]
"""

import argparse
import json
import os
import platform
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

from benchmarks.calibration import MeasuredRun
from benchmarks.reference_task import (
    MAX_COMPLETION_TOKENS,
    NUM_PROMPTS,
    NUM_SAMPLES,
    Sections,
    TrainRun,
    train,
    write_task,
)
from benchmarks.simulator import CALIBRATION

WARM_UP_STEPS = 2
NUM_WORKERS = (1, 2, 4)
SMALL_BATCH = 8


def summary(run: TrainRun, *, num_workers: int, max_staleness: int, prompts_per_step: int) -> MeasuredRun:
    """The run's steps after the first two; asynchronous steps vary in turn, so their mean counts."""
    return MeasuredRun(
        num_workers=num_workers,
        max_staleness=max_staleness,
        prompts_per_step=prompts_per_step,
        step_s=fmean(step["seconds/step"] for step in run.steps[WARM_UP_STEPS:]),
        sampling_s=run.median("seconds/sampling", skip=WARM_UP_STEPS),
        learning_s=run.median("seconds/learning", skip=WARM_UP_STEPS),
        sync_s=run.median("seconds/sync", skip=WARM_UP_STEPS),
        stall_s=run.median("sync/stall_seconds", skip=WARM_UP_STEPS),
        tokens=run.mean_tokens(skip=WARM_UP_STEPS),
    )


def measure(folder: Path, *, num_workers: int, max_staleness: int, prompts_per_step: int, steps: int) -> MeasuredRun:
    changes: Sections = {
        "train": {"num_steps": steps, "max_staleness": max_staleness, "prompts_per_step": prompts_per_step},
        "rollout": {"num_workers": num_workers, "kv_cache_gib": 0.25},
        "cluster": {"cpus_per_learner_rank": 1},
    }
    run = train(folder, changes)
    measured = summary(run, num_workers=num_workers, max_staleness=max_staleness, prompts_per_step=prompts_per_step)
    print(measured)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--output", type=Path, default=CALIBRATION)
    arguments = parser.parse_args()
    settings = [(1, 0, SMALL_BATCH), *((n, k, NUM_PROMPTS) for k in arguments.staleness for n in NUM_WORKERS)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_task(folder, 2 * arguments.steps)
        model_bytes = (folder / "model" / "model.safetensors").stat().st_size
        runs = [
            measure(folder, num_workers=n, max_staleness=k, prompts_per_step=batch, steps=arguments.steps)
            for n, k, batch in settings
        ]
    calibration = {
        "measured": f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)),
        "model_bytes": model_bytes,
        "samples_per_prompt": NUM_SAMPLES,
        "max_tokens": MAX_COMPLETION_TOKENS,
        "runs": [asdict(run) for run in runs],
    }
    arguments.output.write_text(json.dumps(calibration, indent=2) + "\n")


if __name__ == "__main__":
    main()
