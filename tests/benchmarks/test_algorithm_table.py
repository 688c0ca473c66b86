"""What the table of algorithms makes of a run's files, by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.algorithm_table import OPTIONS, Learning, charts, read, settings, table
from benchmarks.charts import COLOURS, draw
from benchmarks.quickstart_runs import QUICKSTART
from ppo_learner.algorithms import ALGORITHMS
from services.cli.arguments import load_config
from services.control.config import RunConfig


def learning(algorithm: str, seed: int, *, last: float) -> Learning:
    return Learning(
        algorithm=algorithm,
        seed=seed,
        accuracies={0: 0.3, 2: last},
        samples={0: 0.0, 1: 512.0, 2: 1024.0},
        seconds={0: 0.0, 1: 1.5, 2: 3.0},
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_fits_the_quickstart(algorithm: str) -> None:
    config, flags = settings(algorithm, num_steps=7, num_updates=3)
    run = load_config(RunConfig, [str(QUICKSTART / config), *flags], prog="trireme train", summary="")
    assert (run.learner.algorithm, run.learner.updates_per_step, run.train.num_steps) == (algorithm, 3, 7)
    for setting, value in ALGORITHMS[algorithm].settings.items():
        assert getattr(run.learner, setting) == value


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_fits_the_quickstart_and_is_none_that_its_algorithm_brings(name: str) -> None:
    algorithm, options = OPTIONS[name]
    run, plain = (
        load_config(RunConfig, [str(QUICKSTART / config), *flags], prog="trireme train", summary="")
        for config, flags in (settings(which, num_steps=7, num_updates=3) for which in (name, algorithm))
    )
    assert run.learner.algorithm == algorithm
    assert run.model_dump(exclude={"run"}) != plain.model_dump(exclude={"run"})
    for key, value in options.items():
        section, field = key.split(".")
        assert getattr(getattr(run, section), field) == value


def test_samples_and_seconds_add_up_over_the_steps_of_a_run(tmp_path: Path) -> None:
    steps = [{"samples_per_second": 4.0, "seconds/step": 2.0}, {"samples_per_second": 8.0, "seconds/step": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    (tmp_path / "summary.json").write_text('{"accuracy_before": 0.4, "accuracy_after": 0.95}')
    found = read(tmp_path, algorithm="ppo", seed=0)
    assert found.accuracies == {0: 0.4, 2: 0.95}
    assert (found.samples, found.seconds) == ({0: 0.0, 1: 8.0, 2: 16.0}, {0: 0.0, 1: 2.0, 2: 3.0})
    assert found.until_reached(found.samples) == 16.0


def test_a_cost_is_told_only_where_every_seed_got_there() -> None:
    runs = [learning("ppo", 0, last=0.95), learning("ppo", 1, last=0.93), learning("rloo", 0, last=0.95)]
    text = table([*runs, learning("rloo", 1, last=0.5)])
    assert "| `ppo` | 94.0% ± 1.4% | 93.0% | 1,024 | 3 | 1.50 |" in text
    assert "| 50.0% | – (1 of 2 did) | – (1 of 2 did) | 1.50 |" in text


def test_every_algorithm_has_a_line_against_samples_and_one_against_seconds(tmp_path: Path) -> None:
    drawn = charts([learning(name, seed, last=0.9) for name in ALGORITHMS for seed in (0, 1)])
    for cost in ("samples", "seconds"):
        lines = [line for chart in drawn if chart.x == cost for line in chart.lines]
        assert [line.label for line in lines] == list(ALGORITHMS)
    draw(drawn, tmp_path / "curves.svg", num_rows=2)
    assert all(name in (tmp_path / "curves.svg").read_text() for name in ALGORITHMS)


def test_more_lines_than_colours_are_refused(tmp_path: Path) -> None:
    (chart, *_) = charts([learning(name, 0, last=0.9) for name in list(ALGORITHMS)[: len(COLOURS)]])
    crowded = replace(chart, lines=[*chart.lines, chart.lines[0]])
    with pytest.raises(ValueError, match="5 lines, and there are 4 colours"):
        draw([crowded], tmp_path / "curves.svg")
