"""Learning at max_staleness 0, 1 and 4: reward and held-out accuracy of the quickstart task, over five seeds.

For each seed one warm-up (prepare and `trireme sft`), then from it `trireme train examples/quickstart/ppo.yaml` with
each bound; nothing else of the quickstart changes. What has its summary is not run again, so that an interrupted call
goes on. Seconds on a small machine: about 70 for a warm-up, 60 for a run.

    python -m benchmarks.staleness_curve [--folder runs/staleness_curve] [--seeds 5] [--staleness 0 1 4]
        [--output runs/staleness_curve/curve.json] [--curve docs/staleness_curve.svg]
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

from benchmarks.charts import Chart, Line, draw
from benchmarks.reference_task import read_lines

QUICKSTART = Path("examples/quickstart")
REWARD, ACCURACY = "reward/mean", "evaluation/accuracy"
TIMEOUT_S = 1800


@dataclass(frozen=True, kw_only=True, slots=True)
class Learning:
    """One run: reward after each step, held-out accuracy at each evaluation (step 0 is before training)."""

    seed: int
    max_staleness: int
    rewards: dict[int, float]
    accuracies: dict[int, float]
    staleness_mean: float
    staleness_largest: float
    seconds: float


def warm_up(folder: Path, seed: int) -> None:
    """The task and the model that every run of this seed starts from."""
    if (folder / "sft" / "summary.json").exists():
        return
    _run(str(QUICKSTART / "prepare.py"), str(folder), "--seed", str(seed))
    _trireme(
        "sft", QUICKSTART / "sft.yaml", folder / "sft", seed,
        "--model.path", str(folder / "model"), "--data.prompts", str(folder / "train.jsonl"),
    )  # fmt: skip


def train(folder: Path, seed: int, max_staleness: int) -> Path:
    """The folder of a finished run with this bound."""
    run = folder / f"staleness_{max_staleness}"
    if not (run / "summary.json").exists():
        _trireme(
            "train", QUICKSTART / "ppo.yaml", run, seed,
            "--model.path", str(folder / "sft" / "export"), "--data.prompts", str(folder / "train.jsonl"),
            "--evaluate.prompts", str(folder / "held_out.jsonl"), "--train.max_staleness", str(max_staleness),
        )  # fmt: skip
    return run


def read(run: Path, *, seed: int, max_staleness: int) -> Learning:
    steps = read_lines(run / "metrics.jsonl")
    summary = json.loads((run / "summary.json").read_text())
    accuracies = {number: step[ACCURACY] for number, step in enumerate(steps, start=1) if ACCURACY in step}
    return Learning(
        seed=seed,
        max_staleness=max_staleness,
        rewards={number: step[REWARD] for number, step in enumerate(steps, start=1)},
        accuracies={0: summary["accuracy_before"], **accuracies, len(steps): summary["accuracy_after"]},
        staleness_mean=fmean(step["staleness/mean"] for step in steps),
        staleness_largest=max(step["staleness/max"] for step in steps),
        seconds=summary["seconds"],
    )


def line(runs: Sequence[Learning], label: str, curve: Callable[[Learning], dict[int, float]]) -> Line:
    """Mean over the seeds, in a band of one standard deviation; a run counts in the steps that it has."""
    steps = sorted({step for run in runs for step in curve(run)})
    values = [[curve(run)[step] for run in runs if step in curve(run)] for step in steps]
    means = [fmean(at_step) for at_step in values]
    spreads = [spread(at_step) for at_step in values]
    return Line(
        label=label, x=steps, y=means,
        low=[mean - half for mean, half in zip(means, spreads, strict=True)],
        high=[mean + half for mean, half in zip(means, spreads, strict=True)],
    )  # fmt: skip


def spread(values: Sequence[float]) -> float:
    """Standard deviation; 0 of a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def charts(runs: Sequence[Learning]) -> list[Chart]:
    bounds = sorted({run.max_staleness for run in runs})
    by_bound = {bound: [run for run in runs if run.max_staleness == bound] for bound in bounds}
    curves: dict[str, Callable[[Learning], dict[int, float]]] = {
        "Reward, sampled": lambda run: run.rewards,
        "Held-out accuracy, greedy": lambda run: run.accuracies,
    }
    return [
        Chart(
            title=f"{title} ({len({run.seed for run in runs})} seeds)", x="step",
            lines=[line(of_bound, f"max_staleness {bound}", curve) for bound, of_bound in by_bound.items()],
        )
        for title, curve in curves.items()
    ]  # fmt: skip


def table(runs: Sequence[Learning]) -> None:
    heads = ("runs", "accuracy", "spread", "lowest", "staleness", "largest")
    print(f"{'max_staleness':14}{''.join(f'{head:>11}' for head in heads)}")
    for bound in sorted({run.max_staleness for run in runs}):
        of_bound = [run for run in runs if run.max_staleness == bound]
        last = [run.accuracies[max(run.accuracies)] for run in of_bound]
        print(
            f"{bound:<14}{len(last):11}{fmean(last):11.1%}{spread(last):11.1%}{min(last):11.1%}"
            f"{fmean(run.staleness_mean for run in of_bound):11.2f}"
            f"{max(run.staleness_largest for run in of_bound):11.0f}"
        )


def _trireme(command: str, config: Path, run: Path, seed: int, *settings: str) -> None:
    shutil.rmtree(run, ignore_errors=True)  # It was interrupted.
    _run("-m", "services.cli", command, str(config), "--run.dir", str(run), "--run.seed", str(seed), *settings)


def _run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)} failed with {done.returncode}:\n{done.stdout}\n{done.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/staleness_curve"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 4])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--curve", type=Path)
    arguments = parser.parse_args()
    runs: list[Learning] = []
    for seed in range(arguments.seeds):
        folder = arguments.folder / f"seed_{seed}"
        warm_up(folder, seed)
        for bound in arguments.staleness:
            runs.append(read(train(folder, seed, bound), seed=seed, max_staleness=bound))
            print(f"seed {seed}, max_staleness {bound}: accuracy {runs[-1].accuracies[max(runs[-1].accuracies)]:.1%}")
    table(runs)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    if arguments.curve is not None:
        draw(charts(runs), arguments.curve)


if __name__ == "__main__":
    main()
