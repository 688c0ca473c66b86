"""What the simulator says: sync schemes from 1 to 1,024 workers, its misses here, and its misses elsewhere.

Three tables. Scale: a 7B model in bfloat16 on nodes of 8 GPUs, asynchronous, batch and learner growing with the workers
(assumed constants, named in `scale_setting`). Measured: predictions beside the runs of the calibration file, of which
the two of one worker are what it was fitted to. Published: predictions beside the speed-ups of verl and AReaL.

    python -m benchmarks.simulator [--calibration FILE] [--output FILE] [--curve docs/weight_sync_schemes.svg]
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.calibration import Calibration, predictions
from benchmarks.charts import Chart, Line, draw
from benchmarks.published import CASES, predict
from benchmarks.simulated_machine import Decoding
from benchmarks.simulation import Setting, lognormal, simulate
from benchmarks.sync_schemes import SCHEMES, Network

NUM_WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
Row = dict[str, float | int | str | bool | None]
CALIBRATION = Path(__file__).with_name("calibration.json")


def scale_setting(num_workers: int, scheme: str) -> Setting:
    """A 7B model on GPUs: 25 GB/s into each node of eight, four such links out of the learner's node."""
    return Setting(
        num_workers=num_workers,
        prompts_per_step=4 * num_workers,
        samples_per_prompt=8,
        max_staleness=1,
        lengths=lognormal(1_000, 8_192),
        decoding=Decoding(fixed_s=0.008, per_sequence_s=1e-4),
        reward_s=0.5,
        learner_s=20.0,
        publish_s=0.5,
        load_s=0.3,
        scheme=scheme,
        network=Network(model_bytes=15.2e9, workers_per_node=8, link=25e9, uplink=100e9, memory=50e9, call_s=0.005),
    )


def scale_table() -> list[Row]:
    """Step, throughput, staleness and sync of every scheme and number of workers."""
    heads = ("workers", "step s", "tokens/s", "sync s", "stall s", "staleness", "max")
    print(f"\n{'Scale':14}{''.join(f'{head:>11}' for head in heads)}")
    rows: list[Row] = []
    for scheme in SCHEMES:
        for num_workers in NUM_WORKERS:
            outcome = simulate(scale_setting(num_workers, scheme), num_steps=8)
            rows.append({"scheme": scheme, "num_workers": num_workers, **asdict(outcome)})
            print(
                f"{scheme:14}{num_workers:11}{outcome.step_s:11.1f}{outcome.tokens_per_s:11,.0f}{outcome.sync_s:11.2f}"
                f"{outcome.stall_s:11.2f}{outcome.staleness_mean:11.2f}{outcome.staleness_max:11}"
            )
    return rows


def measured_table(calibration: Calibration) -> list[Row]:
    """Predicted and measured steps and syncs; the miss is predicted over measured, less one."""
    print(f"\n{'Measured here':27}{'step s':>9}{'predicted':>11}{'miss':>8}{'sync s':>9}{'predicted':>11}{'miss':>8}")
    rows: list[Row] = []
    for index, (run, outcome) in enumerate(predictions(calibration)):
        row: Row = {
            "num_workers": run.num_workers, "max_staleness": run.max_staleness,
            "prompts_per_step": run.prompts_per_step, "fitted": index < 2, "step_s": run.step_s,
            "predicted_step_s": outcome.step_s, "sync_s": run.sync_s, "predicted_sync_s": outcome.sync_s,
        }  # fmt: skip
        rows.append(row)
        name = f"{run.num_workers} workers, k={run.max_staleness}, B={run.prompts_per_step}{' *' if index < 2 else ''}"
        print(
            f"{name:27}{run.step_s:9.2f}{outcome.step_s:11.2f}{outcome.step_s / run.step_s - 1:+8.0%}{run.sync_s:9.3f}"
            f"{outcome.sync_s:11.3f}{outcome.sync_s / run.sync_s - 1:+8.0%}"
        )
    print("* fitted to this run; the others are predictions")
    return rows


def published_table() -> list[Row]:
    """Speed-ups of asynchronous over synchronous steps: published, predicted, and the miss."""
    print(f"\n{'Published':40}{'theirs':>8}{'ours':>7}{'(range)':>14}{'miss':>7}{'learner known':>15}{'miss':>7}")
    rows: list[Row] = []
    for case in CASES:
        prediction = predict(case)
        known = prediction.with_published_learner
        rows.append(
            {
                "name": case.name, "source": case.source, "published": case.published,
                "predicted": prediction.speed_up, "lowest": prediction.lowest, "highest": prediction.highest,
                "predicted_with_published_learner": known,
            }
        )  # fmt: skip
        shown = f"{prediction.lowest:.2f}–{prediction.highest:.2f}"
        last = f"{known:15.2f}{known / case.published - 1:+7.0%}" if known is not None else ""
        print(
            f"{case.name:40}{case.published:8.2f}{prediction.speed_up:7.2f}{shown:>14}"
            f"{prediction.speed_up / case.published - 1:+7.0%}{last}"
        )
    return rows


def draw_curve(rows: Sequence[Mapping[str, Any]], path: Path) -> None:  # Any: a row's numbers and names
    """Seconds from the end of a step to the last worker's serving its weights."""
    lines = [
        Line(
            label=scheme,
            x=[row["num_workers"] for row in rows if row["scheme"] == scheme],
            y=[row["sync_s"] for row in rows if row["scheme"] == scheme],
        )
        for scheme in SCHEMES
    ]
    chart = Chart(title="Weight sync, seconds (simulated)", x="rollout workers", lines=lines, log=True)
    draw([chart], path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=Path, default=CALIBRATION)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--curve", type=Path)
    arguments = parser.parse_args()
    results = {"scale": scale_table()}
    if arguments.calibration.exists():
        results["measured"] = measured_table(Calibration.read(arguments.calibration))
    else:
        print(f"\nno calibration in {arguments.calibration}: measure one with python -m benchmarks.calibrate")
    results["published"] = published_table()
    if arguments.curve is not None:
        draw_curve(results["scale"], arguments.curve)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
