"""Learning at max_staleness 0, 1 and 4: reward and held-out accuracy of the quickstart task, over five seeds.

For each seed one warm-up (prepare and `trireme sft`), then from it `trireme train examples/quickstart/ppo.yaml` with
each bound; nothing else of the quickstart changes. What has its summary is not run again, so that an interrupted call
goes on. Seconds on a small machine: about 70 for a warm-up, 60 for a run.

    python -m benchmarks.staleness_curve [--folder runs/staleness_curve] [--seeds 5] [--staleness 0 1 4]
        [--output runs/staleness_curve/curve.json] [--curve docs/staleness_curve.svg]
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.charts import Chart, Line, draw
from benchmarks.quickstart_runs import accuracies, spread, train, warm_up
from benchmarks.reference_task import read_lines

REWARD = "reward/mean"


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


def read(run: Path, *, seed: int, max_staleness: int) -> Learning:
    steps = read_lines(run / "metrics.jsonl")
    summary = json.loads((run / "summary.json").read_text())
    return Learning(
        seed=seed,
        max_staleness=max_staleness,
        rewards={number: step[REWARD] for number, step in enumerate(steps, start=1)},
        accuracies=accuracies(steps, summary),
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
            run = train(folder, f"staleness_{bound}", seed, "--train.max_staleness", str(bound))
            runs.append(read(run, seed=seed, max_staleness=bound))
            print(f"seed {seed}, max_staleness {bound}: accuracy {runs[-1].accuracies[max(runs[-1].accuracies)]:.1%}")
    table(runs)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    if arguments.curve is not None:
        draw(charts(runs), arguments.curve)


if __name__ == "__main__":
    main()
