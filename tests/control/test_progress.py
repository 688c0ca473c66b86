"""What a watcher sees: the live panel's numbers, plain lines without control characters, and nothing made up."""

import io
import math
import os
import pty
import re
import subprocess
import sys

import pytest
from rich.console import Console

from services.control.catalogue import METRICS, clock, phase_shares, shown
from services.control.progress import Progress, open_progress
from services.control.progress_view import Snapshot, panel, sparkline

STEP = {
    "reward/mean": 0.612,
    "reward/std": 0.31,
    "kl/reference": 0.0031,
    "entropy": 1.234,
    "completion_tokens/mean": 48.25,
    "sampler_gap/mean": 1.5e-7,
    "samples_per_second": 512.0,
    "tokens_per_second": 8700.0,
    "policy_version": 42.0,
    "staleness/mean": 0.5,
    "seconds/step": 2.0,
    "seconds/sampling": 0.5,
    "seconds/scoring": 0.2,
    "seconds/learning": 1.0,
    "seconds/sync": 0.1,
}


def rendered(snapshot: Snapshot, *, width: int = 110) -> str:
    console = Console(record=True, force_terminal=True, width=width, file=io.StringIO())
    console.print(panel(snapshot))
    return console.export_text()


def plain(total_steps: int) -> tuple[Progress, io.StringIO]:
    stream = io.StringIO()
    return Progress(total_steps, title="quickstart", console=Console(file=stream), live=False), stream


def test_the_panel_shows_every_number_a_step_has() -> None:
    text = rendered(
        Snapshot(
            title="quickstart",
            step=42,
            total_steps=80,
            metrics={**STEP, "evaluation/accuracy": 0.712},
            rewards=[0.1, 0.3, 0.612],
            accuracies=[0.5, 0.712],
            accuracy_step=40,
            elapsed_s=83.0,
            left_s=75.0,
        )
    )
    for expected in (
        "quickstart",
        "step 42/80",
        "52%",
        "1:23 elapsed  1:15 left",
        "0.612",
        "± 0.310",
        "▁▄█",
        "71.2%",
        "after step 40",
        "512",
        "8.70k",
        "0.003",
        "1.23",
        "48.2",
        "1.5e-07",
        "policy version 42 · staleness 0.500",
        "sampling 25%",
        "scoring 10%",
        "learning 50%",
        "sync 5%",
        "other 10%",
    ):
        assert expected in text, expected


def test_the_panel_leaves_out_what_a_run_does_not_have() -> None:
    text = rendered(Snapshot(title="sft", step=1, total_steps=2, metrics={"learning_rate": 1e-3}))
    for absent in ("reward", "accuracy", "KL", "sampling", "left", "nan", "None"):
        assert absent not in text, absent


@pytest.mark.parametrize("width", [30, 60, 200])
def test_the_panel_fits_any_terminal(width: int) -> None:
    text = rendered(
        Snapshot(title="quickstart", step=42, total_steps=80, metrics=STEP, rewards=[0.1, 0.2]), width=width
    )
    assert max(len(line) for line in text.splitlines()) <= width


def test_a_narrow_terminal_still_shows_the_newest_reward() -> None:
    rewards = [0.0] * 99 + [1.0]
    text = rendered(Snapshot(title="quickstart", step=42, total_steps=80, metrics=STEP, rewards=rewards), width=44)
    assert re.search(r"▁+█ ", text)


def test_a_loss_that_is_not_finite_is_shown_as_it_is() -> None:
    snapshot = Snapshot(title="quickstart", step=1, total_steps=2, metrics={"policy_loss": math.nan})
    assert re.search(r"policy loss +nan", rendered(snapshot))


def test_the_live_view_shows_steps_and_messages() -> None:
    console = Console(record=True, force_terminal=True, width=110, file=io.StringIO())
    with Progress(80, title="quickstart", console=console, live=True) as progress:
        progress.message("held-out accuracy before training: 16.4%")
        progress.update(42, STEP)
    text = console.export_text()
    assert "held-out accuracy before training: 16.4%" in text
    assert "step 42/80" in text
    assert "0.612" in text


def test_plain_lines_have_the_numbers_and_no_control_characters() -> None:
    progress, stream = plain(3)
    with progress:
        progress.message("loading \x1b[31mred\x1b[0m\x07 \x9b2J")
        for step in (1, 2, 3):
            progress.update(step, STEP | ({"evaluation/accuracy": 0.712} if step == 2 else {}))
    lines = stream.getvalue().splitlines()
    assert not re.search(r"[^\S\n ]|[\x00-\x09\x0b-\x1f\x7f-\x9f]", stream.getvalue())
    assert lines[0] == "quickstart: 3 steps"
    assert "loading" in lines[1]
    assert lines[3].startswith("step 2/3   reward  0.612   accuracy 71.2%   KL to reference  0.003")
    assert "tokens/s  8.70k" in lines[3]
    assert "accuracy" not in lines[4]
    assert lines[5].startswith("quickstart: 3 of 3 steps in 0:0")


def test_a_long_run_prints_few_lines_but_each_evaluation() -> None:
    progress, stream = plain(10_000)
    with progress:
        for step in range(1, 10_001):
            progress.update(step, {"reward/mean": 0.5} | ({"evaluation/accuracy": 0.7} if step == 4321 else {}))
    shown_steps = [int(number) for number in re.findall(r"^step +(\d+)/", stream.getvalue(), re.MULTILINE)]
    assert len(shown_steps) <= 110
    assert {1, 4321, 10_000} <= set(shown_steps)


def test_output_that_cannot_encode_a_character_gets_a_stand_in() -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii")
    with Progress(1, title="日本", console=Console(file=stream), live=False) as progress:
        progress.message("naïve")
    assert b"na?ve" in written.getvalue()


def test_standard_output_that_is_no_terminal_gets_plain_lines_even_when_colour_is_forced() -> None:
    code = (
        "from services.control.progress import open_progress\n"
        "with open_progress(2, title='quickstart') as progress: progress.update(1, {'reward/mean': 0.5})"
    )
    environment = {**os.environ, "FORCE_COLOR": "1"}
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment, timeout=60)
    assert b"reward  0.500" in output.stdout
    assert b"\x1b" not in output.stdout


@pytest.mark.parametrize(("extra", "is_live"), [({}, True), ({"CI": "true"}, False), ({"TERM": "dumb"}, False)])
def test_a_terminal_gets_the_live_view_unless_nobody_watches(extra: dict[str, str], is_live: bool) -> None:
    code = (
        "from services.control.progress import open_progress\n"
        "with open_progress(2, title='quickstart') as progress: progress.update(1, {'reward/mean': 0.5})"
    )
    inherited = {name: value for name, value in os.environ.items() if name not in ("CI", "FORCE_COLOR", "NO_COLOR")}
    environment = {**inherited, "TERM": "xterm-256color", "PYTHONUTF8": "1", **extra}
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stdout=theirs, check=True, env=environment, timeout=60)
    output = os.read(ours, 65536)
    os.close(theirs)
    os.close(ours)
    assert b"0.500" in output
    assert (b"\x1b[" in output) == is_live


def test_time_left_follows_the_pace_and_leaves_out_the_start() -> None:
    time = [0.0]
    progress = Progress(100, title="run", console=Console(file=io.StringIO()), live=False, now=lambda: time[0])
    time[0] = 60.0  # The start-up.
    progress.update(41, {})
    assert progress.snapshot().left_s is None
    time[0] = 64.0
    progress.update(43, {})
    assert progress.snapshot().left_s == 57 * 2.0
    time[0] = 65.0
    assert progress.snapshot().left_s == 57 * 2.0 - 1.0
    assert progress.snapshot().elapsed_s == 65.0


def test_open_progress_counts_to_the_run_s_last_step() -> None:
    assert open_progress(7, title="quickstart").snapshot().total_steps == 7


def test_a_sparkline_spans_its_values_and_leaves_gaps_for_nan() -> None:
    assert sparkline([0.0, 1.0], width=8) == "▁█"
    assert sparkline([0.0, math.nan, 1.0], width=8) == "▁ █"
    assert sparkline([0.5, 0.5], width=8) == "▅▅"
    assert sparkline([0.0] * 50 + [1.0] * 50, width=4) == "▁▁██"
    assert sparkline([], width=8) == ""


def test_phases_that_overlap_share_the_step_between_them() -> None:
    overlapping = phase_shares({"seconds/step": 1.0, "seconds/sampling": 1.0, "seconds/learning": 1.0})
    assert overlapping == {"sampling": 0.5, "learning": 0.5}
    assert phase_shares({"seconds/step": 1.0}) == {}
    assert phase_shares({"seconds/step": math.nan, "seconds/sync": math.nan}) == {}
    assert phase_shares({"seconds/sampling": 1.0, "seconds/learning": 3.0}) == {"sampling": 0.25, "learning": 0.75}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("evaluation/accuracy", 0.7123, "71.2%"),
        ("evaluation/pass@8", 1.0, "100.0%"),
        ("sampler_gap/mean", 1.53e-7, "1.5e-07"),
        ("policy_version", 1234.0, "1,234"),
        ("tokens_per_second", 8712.0, "8.71k"),
        ("seconds/step", 0.4567, "0.457 s"),
        ("seconds/step", 3661.0, "1:01:01"),
        ("entropy", 0.0, "0"),
        ("policy_loss", -0.0213, "-0.021"),
        ("policy_loss", math.inf, "inf"),
    ],
)
def test_numbers_are_written_in_their_unit(name: str, value: float, expected: str) -> None:
    assert shown(name, value) == expected


def test_durations_are_clocks() -> None:
    assert [clock(42.4), clock(59.6), clock(725), clock(11045)] == ["0:42", "1:00", "12:05", "3:04:05"]


def test_each_metric_of_the_catalogue_has_a_title_of_its_own() -> None:
    titles = [metric.title for metric in METRICS.values()]
    assert len(set(titles)) == len(titles)
