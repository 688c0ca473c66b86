"""What the benchmarks compute from a run's files, by hand; and the staleness bound on a short sleeping run."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.changing_workers import FIRST_STEPS, in_medians
from benchmarks.controller_cost import slope
from benchmarks.learner_memory import OVER_VOCABULARIES, SIDES, TOKENS, VOCABULARIES, Found, charts, points
from benchmarks.reference_task import TrainRun, read_lines
from benchmarks.staleness_bound import count, staleness_of_trained
from benchmarks.staleness_curve import Learning, line, read
from benchmarks.worker_loss import NUM_STEPS_AFTER, lost_prompts, rate, serving_pid

Events = list[dict[str, Any]]  # Any: an event's fields


def accepted(prompt: str, lowest_version: int) -> dict[str, Any]:  # Any: an event's fields
    return {"event": "accepted", "prompt": prompt, "lowest_version": lowest_version}


def trained(prompt: str, step: int) -> dict[str, Any]:  # Any: an event's fields
    return {"event": "trained", "prompt": prompt, "step": step}


def test_staleness_is_the_learners_version_before_the_step_less_the_oldest_tokens() -> None:
    events = [accepted("a", 0), accepted("b", 2), accepted("c", 0), trained("a", 1), trained("b", 5), trained("c", 2)]
    assert staleness_of_trained(events) == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize("bound", [0, 1, 4])
async def test_a_short_run_keeps_its_bound_and_uses_it(tmp_path: Path, bound: int) -> None:
    counts = await count(tmp_path, max_staleness=bound, num_groups=160)
    assert counts.total() == 160
    assert max(counts) == bound


def test_the_exponent_of_a_power_law_is_found() -> None:
    assert slope([1, 2, 4, 8], [3 * n**0.5 for n in (1, 2, 4, 8)]) == pytest.approx(0.5)
    assert slope([1, 2, 4, 8], [7.0] * 4) == pytest.approx(0.0)


def test_memory_is_measured_over_tokens_and_over_the_vocabulary_each_point_once() -> None:
    head, plain = points("head"), points("plain")
    assert len(head) == len(set(head)) == 10
    assert set(head) - set(plain) == {(8192, 32_000), (4096, 150_000), (8192, 150_000)}, "too much memory"
    found: Found = {side: {} for side in SIDES}
    for side in SIDES:
        for tokens, vocabulary in points(side):
            found[side].setdefault(vocabulary, {})[tokens] = tokens * vocabulary / (2 if side == "head" else 1)
    of_head, of_plain, over_vocabularies = charts(found)
    assert [list(line.x) for line in of_head.lines] == [list(TOKENS)] * 2
    assert [list(line.x) for line in of_plain.lines] == [[256, 1024, 4096], [256, 1024]]
    assert [list(line.x) for line in over_vocabularies.lines] == [list(VOCABULARIES)] * 2
    assert list(over_vocabularies.lines[1].y) == [OVER_VOCABULARIES * size for size in VOCABULARIES]


def test_the_process_to_kill_is_that_of_a_worker_that_is_there() -> None:
    joined: Events = [{"event": "joined", "worker": number, "node": "n", "pid": 100 + number} for number in range(4)]
    assert serving_pid([*joined, {"event": "left", "worker": 3, "reason": "drained"}]) == 102


def test_a_prompt_admitted_before_the_kill_and_never_trained_is_lost() -> None:
    events = [
        *({"event": "admitted", "prompt": prompt, "time": time} for prompt, time in zip("abc", (1, 2, 9), strict=True)),
        trained("a", 1),
    ]
    assert lost_prompts(events, killed_at=5.0) == ["b"]


def test_the_rate_after_a_step_weighs_its_steps_by_their_seconds() -> None:
    slow, fast = {"tokens_per_second": 10.0, "seconds/step": 3.0}, {"tokens_per_second": 40.0, "seconds/step": 1.0}
    steps = [{"tokens_per_second": 1.0, "seconds/step": 1.0}, *[slow, fast] * (NUM_STEPS_AFTER // 2)]
    assert rate(TrainRun(folder=Path(), steps=steps, events=[]), after=1) == pytest.approx((30 + 40) / 4)


def test_the_longest_step_is_held_against_the_median_of_those_after_the_first() -> None:
    steps = [{"seconds/step": second} for second in (*[90.0] * FIRST_STEPS, 2.0, 1.0, 2.0, 5.0, 2.0)]
    run = TrainRun(folder=Path(), steps=steps, events=[])
    assert in_medians(run) == pytest.approx([1.0, 0.5, 1.0, 2.5, 1.0])


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_lines(path) == []
    path.write_text('{"a": 1}\n{"a": ')
    assert read_lines(path) == [{"a": 1}]


def test_a_learning_curve_has_the_evaluations_before_between_and_after(tmp_path: Path) -> None:
    steps = [{"reward/mean": reward, "staleness/mean": 0.5, "staleness/max": 1.0} for reward in (0.1, 0.2, 0.3)]
    steps[1]["evaluation/accuracy"] = 0.6
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    (tmp_path / "summary.json").write_text('{"accuracy_before": 0.4, "accuracy_after": 0.9, "seconds": 5.0}')
    learning = read(tmp_path, seed=0, max_staleness=1)
    assert learning.accuracies == {0: 0.4, 2: 0.6, 3: 0.9}
    assert learning.rewards == {1: 0.1, 2: 0.2, 3: 0.3}


def test_a_band_is_one_standard_deviation_around_the_mean_of_the_seeds() -> None:
    runs = [
        Learning(
            seed=seed, max_staleness=0, rewards={1: reward}, accuracies={}, staleness_mean=0.0, staleness_largest=0.0,
            seconds=1.0,
        )
        for seed, reward in enumerate((1.0, 3.0))
    ]  # fmt: skip
    drawn = line(runs, "k", lambda run: run.rewards)
    assert list(drawn.y) == [2.0]
    assert drawn.low[0] == pytest.approx(2 - 2**0.5)
    assert drawn.high[0] == pytest.approx(2 + 2**0.5)
