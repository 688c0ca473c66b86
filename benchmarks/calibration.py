"""The simulator's constants from measured runs, and its predictions beside what was measured.

Two synchronous runs of one worker, with different batches, give every constant; what the simulator says of more
workers and of asynchronous runs is then a prediction. `python -m benchmarks.calibrate` measures. It must not start
anything, and fits nothing to the runs that it predicts.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.simulated_machine import Decoding
from benchmarks.simulation import Outcome, Setting, geometric, simulate
from benchmarks.sync_schemes import Network

MEMORY_BYTES_PER_S = 5e9


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredRun:
    """Medians over the steps of one `trireme train`, in seconds, and its mean completion tokens a step."""

    num_workers: int
    max_staleness: int
    prompts_per_step: int
    step_s: float
    sampling_s: float
    learning_s: float
    sync_s: float
    stall_s: float
    tokens: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Measured runs of one machine, on one model."""

    cores: int
    model_bytes: int
    samples_per_prompt: int
    max_tokens: int
    runs: tuple[MeasuredRun, ...]

    @classmethod
    def read(cls, path: Path) -> "Calibration":
        fields = json.loads(path.read_text())
        runs = tuple(MeasuredRun(**run) for run in fields.pop("runs"))
        fields.pop("measured", None)
        return cls(runs=runs, **fields)


def fit(calibration: Calibration) -> Setting:
    """The setting of the larger of the two synchronous one-worker runs.

    With every sequence running from the start, sampling takes (longest completion) · fixed + tokens · per_sequence.
    """
    small, large = _one_worker_runs(calibration)
    per_sequence_s = max(0.0, (large.sampling_s - small.sampling_s) / (large.tokens - small.tokens))
    fixed_s = (large.sampling_s - large.tokens * per_sequence_s) / calibration.max_tokens
    per_token_s = max(0.0, (large.learning_s - small.learning_s) / (large.tokens - small.tokens))
    mean = large.tokens / (large.prompts_per_step * calibration.samples_per_prompt)
    return Setting(
        num_workers=1,
        prompts_per_step=large.prompts_per_step,
        samples_per_prompt=calibration.samples_per_prompt,
        max_staleness=0,
        lengths=geometric(uncapped_mean(mean, calibration.max_tokens), calibration.max_tokens),
        decoding=Decoding(fixed_s=fixed_s, per_sequence_s=per_sequence_s),
        reward_s=max(0.0, large.step_s - large.sampling_s - large.learning_s - large.sync_s),
        learner_s=large.learning_s - large.tokens * per_token_s,
        learner_per_token_s=per_token_s,
        publish_s=max(0.0, large.sync_s - large.stall_s - calibration.model_bytes / MEMORY_BYTES_PER_S),
        load_s=large.stall_s,
        scheme="shared pull",
        network=Network(
            model_bytes=calibration.model_bytes, workers_per_node=8, link=MEMORY_BYTES_PER_S,
            uplink=MEMORY_BYTES_PER_S, memory=MEMORY_BYTES_PER_S, call_s=0.0,
        ),
        cores_per_node=calibration.cores,
        learner_shares_cores=True,
    )  # fmt: skip


def predictions(calibration: Calibration) -> list[tuple[MeasuredRun, Outcome]]:
    """Each measured run with what the simulator makes of its setting; the first two were fitted."""
    fitted = fit(calibration)
    fitted_runs = _one_worker_runs(calibration)
    others = [run for run in calibration.runs if run not in fitted_runs]
    return [
        (
            run,
            simulate(
                replace(
                    fitted, num_workers=run.num_workers, max_staleness=run.max_staleness,
                    prompts_per_step=run.prompts_per_step,
                ),
                num_steps=40,
            ),
        )
        for run in (*fitted_runs, *others)
    ]  # fmt: skip


def uncapped_mean(mean: float, cap: int) -> float:
    """Mean of the geometric lengths that, cut at `cap`, have the mean `mean`: m (1 - exp(-cap / m)) = mean."""
    low, high = mean, 1e6
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if middle * -math.expm1(-cap / middle) < mean else (low, middle)
    return low


def _one_worker_runs(calibration: Calibration) -> Sequence[MeasuredRun]:
    runs = [run for run in calibration.runs if run.num_workers == 1 and run.max_staleness == 0]
    runs.sort(key=lambda run: run.prompts_per_step)
    if len(runs) < 2 or runs[0].prompts_per_step == runs[-1].prompts_per_step:
        raise SystemExit(
            f"{len(runs)} synchronous runs of one worker in the calibration, and the fit needs two with different "
            "prompts_per_step; measure with python -m benchmarks.calibrate"
        )
    return runs[0], runs[-1]
