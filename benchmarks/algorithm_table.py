"""Every algorithm on the quickstart task: held-out accuracy against samples and against seconds, over seeds.

For each seed one warm-up (prepare and `trireme sft`), then from it `trireme train` with each algorithm as its line of
`ALGORITHMS` has it. Nothing else differs, but that grpo_process learns from the reward of each digit; each step is four
updates, because with one the ratio is 1 and losses that differ by what they make of it are the same; `--updates` has
it otherwise, in a folder of its own. What has its summary is not run again. Seconds on a small machine: about 70 for a
warm-up, 100 for a run. By the names of `OPTIONS` an algorithm is run with a setting that none brings by itself.

    python -m benchmarks.algorithm_table [--folder runs/algorithm_table] [--seeds 3] [--algorithms ppo grpo_lead …]
        [--steps 40] [--updates 4] [--output runs/algorithm_table/table.json] [--table table.md]
        [--curves docs/algorithms.svg]
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean

from benchmarks.charts import COLOURS, Chart, Line, draw
from benchmarks.quickstart_runs import WITH_DEMONSTRATIONS, accuracies, spread, train, warm_up
from benchmarks.reference_task import read_lines
from ppo_learner.algorithms import ALGORITHMS

OPTIONS: dict[str, tuple[str, dict[str, object]]] = {
    "ppo_value_head": ("ppo", {"learner.critic": "value_head"}),
    "ppo_huber": ("ppo", {"learner.value_huber_delta": 0.5, "learner.value_clip": None}),
    "ppo_critic_warm_up": ("ppo", {"learner.critic_warmup_steps": 3}),
    "ppo_normalised_returns": ("ppo", {"learner.normalise_returns": True}),
    "ppo_adaptive_kl": ("ppo", {"learner.kl_coefficient": 0.05, "learner.kl_target": 1.0, "learner.kl_horizon": 5000}),
    "grpo_dual_clip": ("grpo", {"learner.dual_clip": 3.0}),
    "grpo_entropy": ("grpo", {"learner.entropy_coefficient": 0.001}),
    "grpo_kl_stop": ("grpo", {"learner.kl_stop": 0.01}),
    "grpo_sequence_mean": ("grpo", {"learner.loss_aggregation": "sequence_mean"}),
    "grpo_lead": ("grpo", {"learner.difficulty_weighting": True, "learner.length_penalty": 0.05}),
    "grpo_stale": ("grpo", {"train.max_staleness": 1, "learner.importance_correction": "token_tis"}),
    "dapo_whole": ("dapo", {"train.dynamic_sampling": True, "learner.overlong_tokens": 2}),
    "demonstrations": ("ppo", {}),
    "demonstrations_complement": ("ppo", {"demonstrations.rl_weight": "complement", "demonstrations.coefficient": 0.9}),
}
"""The algorithm, and what is set besides; demonstrations are in a quickstart file of their own."""
_CONFIGS = {
    "grpo_process": "process.yaml",
    "demonstrations": WITH_DEMONSTRATIONS,
    "demonstrations_complement": WITH_DEMONSTRATIONS,
}

REACHED = 0.9
"""The accuracy whose samples and seconds are told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Learning:
    """One run; `accuracies`, `samples` and `seconds` are by step, the latter two counted from the run's first step."""

    algorithm: str
    seed: int
    accuracies: dict[int, float]
    samples: dict[int, float]
    seconds: dict[int, float]

    @property
    def last(self) -> float:
        return self.accuracies[max(self.accuracies)]

    def until_reached(self, cost: dict[int, float]) -> float | None:
        """What it cost up to the first evaluation that found `REACHED`; None if none did."""
        step = next((step for step, accuracy in sorted(self.accuracies.items()) if accuracy >= REACHED), None)
        return None if step is None else cost[step]


def settings(name: str, *, num_steps: int, num_updates: int) -> tuple[str, list[str]]:
    """The quickstart's file that an algorithm, or an option, trains with, and what is changed in it."""
    algorithm, options = OPTIONS.get(name, (name, {}))
    flags = {
        "learner.algorithm": algorithm,
        "learner.num_minibatches": num_updates,
        "train.num_steps": num_steps,
        **options,
    }
    parts = [part for key, value in flags.items() for part in (f"--{key}", "null" if value is None else str(value))]
    return _CONFIGS.get(name, "ppo.yaml"), parts


def read(run: Path, *, algorithm: str, seed: int) -> Learning:
    steps = read_lines(run / "metrics.jsonl")
    return Learning(
        algorithm=algorithm,
        seed=seed,
        accuracies=accuracies(steps, json.loads((run / "summary.json").read_text())),
        samples=_running(step["samples_per_second"] * step["seconds/step"] for step in steps),
        seconds=_running(step["seconds/step"] for step in steps),
    )


def _running(costs: Iterable[float]) -> dict[int, float]:
    """The sum up to each step."""
    return dict(enumerate(accumulate(costs, initial=0.0)))


def table(runs: Sequence[Learning]) -> str:
    """Markdown: accuracy at the end over the seeds, and what it took to get to `REACHED`, where every seed did."""
    share = f"{REACHED:.0%}"
    heads = (
        "algorithm",
        "accuracy, mean ± deviation",
        "lowest",
        f"samples to {share}",
        f"seconds to {share}",
        "s a step",
    )
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for algorithm, of_it in _by_algorithm(runs).items():
        last = [run.last for run in of_it]
        samples = _mean_if_all(run.until_reached(run.samples) for run in of_it)
        seconds = _mean_if_all(run.until_reached(run.seconds) for run in of_it)
        step_s = fmean(run.seconds[max(run.seconds)] / max(run.seconds) for run in of_it)
        lines.append(
            f"| `{algorithm}` | {fmean(last):.1%} ± {spread(last):.1%} | {min(last):.1%} | {samples} | {seconds} | "
            f"{step_s:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _mean_if_all(costs: Iterable[float | None]) -> str:
    found = list(costs)
    reached = [cost for cost in found if cost is not None]
    return f"{fmean(reached):,.0f}" if len(reached) == len(found) else f"– ({len(reached)} of {len(found)} did)"


def charts(runs: Sequence[Learning]) -> list[Chart]:
    """A row of accuracy against samples, and one against seconds; a chart has a colour for each of its algorithms."""
    by_algorithm = list(_by_algorithm(runs).items())
    parts = [by_algorithm[begin : begin + len(COLOURS)] for begin in range(0, len(by_algorithm), len(COLOURS))]
    costs: dict[str, Callable[[Learning], dict[int, float]]] = {
        "samples": lambda run: run.samples,
        "seconds": lambda run: run.seconds,
    }
    return [
        Chart(
            title=f"Held-out accuracy ({len({run.seed for run in runs})} seeds)",
            x=name,
            lines=[_line(algorithm, of_it, cost) for algorithm, of_it in part],
        )
        for name, cost in costs.items()
        for part in parts
    ]


def _line(algorithm: str, runs: Sequence[Learning], cost: Callable[[Learning], dict[int, float]]) -> Line:
    """Means over the seeds at each evaluation, in a band of one standard deviation."""
    steps = sorted(set.intersection(*(set(run.accuracies) for run in runs)))
    values = [[run.accuracies[step] for run in runs] for step in steps]
    return Line(
        label=algorithm,
        x=[fmean(cost(run)[step] for run in runs) for step in steps],
        y=[fmean(of_step) for of_step in values],
        low=[fmean(of_step) - spread(of_step) for of_step in values],
        high=[fmean(of_step) + spread(of_step) for of_step in values],
    )


def _by_algorithm(runs: Sequence[Learning]) -> dict[str, list[Learning]]:
    names = dict.fromkeys(run.algorithm for run in runs)
    return {name: [run for run in runs if run.algorithm == name] for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/algorithm_table"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--algorithms", nargs="+", choices=[*ALGORITHMS, *OPTIONS], default=list(ALGORITHMS))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--curves", type=Path)
    arguments = parser.parse_args()
    runs: list[Learning] = []
    for seed in range(arguments.seeds):
        folder = arguments.folder / f"seed_{seed}"
        warm_up(folder, seed)
        for algorithm in arguments.algorithms:
            config, flags = settings(algorithm, num_steps=arguments.steps, num_updates=arguments.updates)
            run = train(folder, algorithm, seed, *flags, config=config)
            runs.append(read(run, algorithm=algorithm, seed=seed))
            print(f"seed {seed}, {algorithm}: accuracy {runs[-1].last:.1%}", flush=True)
    print(table(runs))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    if arguments.table is not None:
        arguments.table.write_text(table(runs))
    if arguments.curves is not None:
        draw(charts(runs), arguments.curves, num_rows=2)


if __name__ == "__main__":
    main()
