"""The report: pictures with something in them, one self-contained page, and hostile text that stays text."""

import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from PIL import Image

from services.cli.report import main
from services.contracts.errors import UserError
from services.contracts.records import Message, Reward, RolloutGroup, ScoredGroup, StepReward
from services.control.metrics import MetricsWriter, SampleLog
from services.control.panels import comparison_panels, run_panels
from services.control.report import write_comparison, write_report
from services.control.run_facts import early_and_late, headlines, median_phases, statistics
from services.control.run_record import read_run
from services.control.thinning import smoothed, thinned
from services.control.visible_text import visible
from tests.fakes import make_prompt, make_rollout

HOSTILE = "</pre><script>alert('owned')</script><img src=x onerror=alert(1)>\x00\x1b[31m\u202eevil"
NUM_STEPS = 12


def step_metrics(step: int) -> dict[str, float]:
    return {
        "reward/mean": step / NUM_STEPS,
        "reward/std": 0.2,
        "reward/exact_match": step / NUM_STEPS,
        "kl/reference": 0.01 * step,
        "gradient_norm/policy": 1.0 / step,
        "gradient_norm/critic": 2.0 / step,
        "learning_rate": 1e-4,
        "samples_per_second": 100.0,
        "seconds/step": 2.0,
        "seconds/sampling": 0.5,
        "seconds/learning": 1.0,
    }


def make_run(
    folder: Path,
    *,
    name: str = "quickstart",
    num_steps: int = NUM_STEPS,
    metrics: Callable[[int], dict[str, float]] = step_metrics,
    completion: str = "42",
    steps: tuple[StepReward, ...] = (),
    turns: tuple[Message, ...] = (),
) -> Path:
    writer = MetricsWriter(folder, ())
    with SampleLog(folder, samples_per_step=2) as samples:
        for step in range(1, num_steps + 1):
            writer.record(step, metrics(step))
            prompt = make_prompt(step, text=f"prompt of step {step}")
            rollout = replace(make_rollout(prompt, completion=completion), turns=turns)
            group = RolloutGroup(prompt=prompt, rollouts=(rollout,))
            reward = Reward(value=0.625, components={"exact_match": 0.375}, steps=steps)
            samples.record(step, [ScoredGroup(group=group, rewards=(reward,))])
    writer.close()
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": {"name": name}, "learner": {"algorithm": "ppo"}}))
    summary = {
        "accuracy_before": 0.164,
        "accuracy_after": 0.931,
        "num_samples": 40960,
        "seconds": 61.4,
        "peak_memory_bytes": 3 * 2**30,
        "versions": {"torch": "2.13.0"},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an ordinary run with its report."""
    return write_report(make_run(tmp_path_factory.mktemp("run"))).parent


class Page(HTMLParser):
    """What a browser would see: the tags with their attributes, and the text."""

    def __init__(self, report: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(report.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_shows_the_headlines_the_samples_and_the_configuration(reported: Path) -> None:
    text = " ".join(Page(reported / "report.html").text.split())
    for expected in (
        "quickstart PPO · 12 steps",
        "held-out accuracy 16.4%93.1%",
        "40,960",
        "1:01",
        "GiB at the peak 3.00",
        "Step 1 prompt of step 1 42 reward 0.625 exact_match 0.375",
        "Step 12 prompt of step 12 42",
        "sampling 0.500 s, 25.0%",
        "learning 1.00 s, 50.0%",
        "algorithm: ppo",
        "torch2.13.0",
    ):
        assert expected in text, expected


def test_each_panel_is_an_svg_with_a_name_and_a_line_in_the_page_s_colours(reported: Path) -> None:
    text = (reported / "report.html").read_text()
    drawings = re.findall(r'<svg role="img" aria-label="([^"]+)".*?</svg>', text, re.DOTALL)
    assert drawings == [panel.title for panel in run_panels(read_run(reported))]
    svgs = re.findall(r'<svg role="img".*?</svg>', text, re.DOTALL)
    assert all("stroke: var(--line-0)" in svg or "fill: var(--line-0)" in svg for svg in svgs)
    assert not re.search(r"(stroke|fill): #(?!000000|ffffff)\w{6}", " ".join(svgs))


def test_the_steps_of_a_completion_are_marked_with_what_each_earned(tmp_path: Path) -> None:
    steps = (StepReward(start=1, end=4, value=0.25), StepReward(start=4, end=5, value=-1.0))
    run = make_run(tmp_path, completion="a<b>c\n  d", steps=steps, num_steps=1, metrics=plain_metrics)
    text = write_report(run).read_text()
    assert (
        '<pre class="completion" dir="auto">a<span class="step">&lt;b&gt;<b>0.25</b></span>'
        '<span class="step">c<b>-1</b></span>\n  d</pre>'
    ) in text


def plain_metrics(step: int) -> dict[str, float]:
    return {"reward/mean": step / NUM_STEPS}


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run = make_run(tmp_path, name=f"name {HOSTILE}", completion=HOSTILE, metrics=plain_metrics)
    (run / "events.jsonl").write_text(json.dumps({"event": "failed", "prompt": "0-1", "reason": HOSTILE}) + "\n")
    report = write_report(run)
    page = Page(report)
    assert not {"script", "img", "iframe", "object", "link"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count("</pre><script>alert('owned')</script><img src=x onerror=alert(1)>��[31m") >= 4
    assert "\x00" not in page.text
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text


def test_the_report_asks_the_network_for_nothing_and_forbids_it(reported: Path) -> None:
    page = Page(reported / "report.html")
    links = [
        attributes[name] for _, attributes in page.tags for name in ("src", "href", "xlink:href") if name in attributes
    ]
    assert all(link is not None and link.startswith("#") for link in links)
    policies = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    text = (reported / "report.html").read_text()
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_the_page_follows_dark_mode_and_fits_a_phone(reported: Path) -> None:
    text = (reported / "report.html").read_text()
    assert "@media (prefers-color-scheme: dark)" in text
    assert 'name="viewport" content="width=device-width' in text


def area_of(colours: Counter[tuple[int, ...]], *rgb: int, opacity: float) -> int:
    """Pixels of the colour as it looks on white at that opacity."""
    blended = [opacity * part + (1 - opacity) * 255 for part in rgb]
    return sum(
        count for colour, count in colours.items() if all(abs(a - b) < 2 for a, b in zip(colour, blended, strict=True))
    )


def test_the_curves_are_a_picture_with_lines_in_it(reported: Path) -> None:
    with Image.open(reported / "curves.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width >= 1200
        colours = Counter(zip(*(channel.tobytes() for channel in picture.convert("RGB").split()), strict=True))
    assert colours[(0x39, 0x87, 0xD6)] > 1000
    assert colours[(0xCF, 0x8A, 0x14)] > 200  # The critic's line.
    assert area_of(colours, 0x39, 0x87, 0xD6, opacity=0.13) > 5000  # The band around the reward.
    assert area_of(colours, 0x2A, 0x9D, 0x78, opacity=0.9) > 5000  # Learning, in the stack of phases.
    assert colours[(0xFF, 0xFF, 0xFF)] > 0.5 * colours.total()


def test_a_run_of_one_step_or_without_known_metrics_still_has_a_report(tmp_path: Path) -> None:
    one = Page(write_report(make_run(tmp_path / "one", num_steps=1, metrics=plain_metrics)))
    assert "1 step" in one.text
    bare = write_report(make_run(tmp_path / "bare", metrics=lambda step: {"my_metric": float(step)}))
    assert "my_metric" in Page(bare).text
    with Image.open(tmp_path / "bare" / "curves.png") as picture:
        picture.verify()


def test_metrics_that_are_not_finite_leave_gaps_and_are_told(tmp_path: Path) -> None:
    def metrics(step: int) -> dict[str, float]:
        return {"policy_loss": 0.1 if step < 5 else math.nan, "value_loss": math.nan, "entropy": 1.0}

    page = Page(write_report(make_run(tmp_path, metrics=metrics)))
    panels = {panel.title: panel for panel in run_panels(read_run(tmp_path))}
    assert panels["Policy loss"].legend()[0][1] == "nan"
    assert panels["Policy loss"].series[0].steps[-1] == NUM_STEPS
    assert re.search(r"value loss\s*nan\s*nan\s*nan\s*nan", page.text)


def test_a_run_that_died_is_reported_as_far_as_it_went(tmp_path: Path) -> None:
    run = make_run(tmp_path, metrics=plain_metrics)
    for name in ("summary.json", "config.yaml", "samples.jsonl"):
        (run / name).unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "ti')
    text = Page(write_report(run)).text
    assert "12 steps · not finished" in text
    assert tmp_path.name in text


def test_what_cannot_be_reported_is_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing is not a folder; give the folder of a run"):
        write_report(tmp_path / "missing")
    with pytest.raises(UserError, match=r"metrics\.jsonl has no step yet; give a run that has finished its first step"):
        write_report(tmp_path)
    run = make_run(tmp_path / "run")
    (run / "summary.json").write_text("{torn")
    with pytest.raises(UserError, match=r"summary\.json is not valid JSON.*delete it"):
        write_report(run)


def test_panels_come_in_order_and_leave_out_what_never_varies(tmp_path: Path) -> None:
    panels = run_panels(read_run(make_run(tmp_path)))
    assert [panel.title for panel in panels] == [
        "Reward",
        "Held-out accuracy",
        "Reward components",
        "KL per token",
        "Gradient norm",
        "Samples per second",
        "Seconds per step",
    ]
    reward, accuracy, *_, gradient, _, seconds = panels
    assert reward.series[0].spread == [0.2] * NUM_STEPS
    assert list(zip(accuracy.series[0].steps, accuracy.series[0].values, strict=True)) == [(0, 0.164), (12, 0.931)]
    assert [series.label for series in gradient.series] == ["policy", "critic"]
    assert gradient.series[0].colour != gradient.series[1].colour
    assert seconds.stacked
    assert [series.label for series in seconds.series] == ["sampling", "learning"]


def test_a_schedule_is_drawn_once_it_varies_and_is_not_smoothed(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path, metrics=lambda step: {"learning_rate": 1e-4 * step}))
    (panel,) = [panel for panel in run_panels(run) if panel.title == "Learning rate"]
    assert not panel.smooth


def test_headlines_leave_out_what_the_run_does_not_have(tmp_path: Path) -> None:
    make_run(tmp_path, metrics=lambda step: {"loss": 2.0 / step})
    (tmp_path / "summary.json").unlink()
    lines = {line.label: line for line in headlines(read_run(tmp_path))}
    assert set(lines) == {"loss", "steps", "time"}
    assert lines["loss"].before == "0.913"  # The mean of 2/1 … 2/5; the last five are 2/8 … 2/12.
    assert lines["loss"].value == "0.204"


def test_the_phases_are_of_the_median_step(tmp_path: Path) -> None:
    def metrics(step: int) -> dict[str, float]:
        return step_metrics(step) | ({"seconds/sampling": 100.0, "seconds/step": 101.5} if step == 1 else {})

    phases = {phase.name: phase for phase in median_phases(read_run(make_run(tmp_path, metrics=metrics)).rows)}
    assert phases["sampling"].seconds == "0.500 s"
    assert phases["other"].share == pytest.approx(0.25)


def test_samples_shown_are_those_of_the_first_and_the_last_step(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path))
    assert [(step, [sample.prompt for sample in samples]) for step, samples in early_and_late(run.samples)] == [
        (1, ["prompt of step 1"]),
        (12, ["prompt of step 12"]),
    ]
    assert len(early_and_late(run.samples[:1])) == 1
    assert early_and_late([]) == []


def test_statistics_cover_every_metric(tmp_path: Path) -> None:
    lines = {line.title: line for line in statistics(read_run(make_run(tmp_path)).rows)}
    assert len(lines) == len(step_metrics(1))
    reward = lines["reward"]
    assert (reward.first, reward.last, reward.least, reward.greatest) == ("0.083", "1.00", "0.083", "1.00")


def test_events_tell_resumes_and_failures_and_a_torn_one_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, metrics=plain_metrics)
    events = [{"event": "resumed", "step": 7}, {"event": "failed", "prompt": "0-3", "reason": "timeout: slow"}]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "fai')
    text = Page(write_report(run)).text
    assert "Resumed after step 7." in text
    assert "Failed for good: 1 prompt; the last: timeout: slow" in text


def test_endless_completions_are_cut_with_a_word_about_the_rest(tmp_path: Path) -> None:
    text = Page(write_report(make_run(tmp_path, completion="a" * 10_000, metrics=plain_metrics))).text
    assert "a" * 4000 + "… and 6,000 more characters, in samples.jsonl" in text
    assert "a" * 4001 not in text


def test_a_long_configuration_is_shown_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path, metrics=plain_metrics)
    (run / "config.yaml").write_text("run: {name: quickstart}\n" + "# padding\n" * 2000 + "last: setting\n")
    assert "last: setting" in Page(write_report(run)).text


def test_text_of_any_script_stays_as_it_is() -> None:
    text = "日本語\u3000naïve\u00a0café 👨\u200d👩\u200d👧 עברית\tA\n∑"
    assert visible(text) == text
    assert visible("a\x00\x1b[2J\x9b\u202e\ud800\r\x08z") == "a��[2J�����z"


def test_several_runs_are_compared_line_by_line(tmp_path: Path) -> None:
    first, second = (
        make_run(tmp_path / "a", name="small", metrics=plain_metrics),
        make_run(tmp_path / "b", name="large", num_steps=6, metrics=plain_metrics),
    )
    report = write_comparison([first, second], tmp_path / "comparison.html")
    text = " ".join(Page(report).text.split())
    assert "2 runs small · large" in text
    assert "small 16.4% → 93.1%" in text
    panels = {panel.title: panel for panel in comparison_panels([read_run(first), read_run(second)])}
    assert [series.label for series in panels["Reward"].series] == ["small", "large"]
    assert [len(series.steps) for series in panels["Reward"].series] == [12, 6]
    with Image.open(tmp_path / "comparison.png") as picture:
        picture.verify()


def test_runs_that_share_a_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / "a", num_steps=2, metrics=plain_metrics),
        make_run(tmp_path / "b", num_steps=2, metrics=plain_metrics),
    ]
    text = Page(write_comparison(folders, tmp_path / "comparison.html")).text
    assert all(str(folder) in text for folder in folders)


def test_the_command_prints_where_the_files_lie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (
        make_run(tmp_path / "a", num_steps=2, metrics=plain_metrics),
        make_run(tmp_path / "b", num_steps=2, metrics=plain_metrics),
    )
    assert main([str(first), str(second), "--output", str(tmp_path / "both.html")]) == 0
    printed = capsys.readouterr().out.split()
    files = [Path(word) for word in printed if word.startswith(str(tmp_path))]
    assert files == [
        first / "report.html",
        first / "curves.png",
        second / "report.html",
        second / "curves.png",
        tmp_path / "both.html",
    ]
    assert all(file.stat().st_size > 1000 for file in files)


def test_reading_and_writing_a_report_takes_none_of_the_heavy_packages(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_steps=2, metrics=plain_metrics)
    code = (
        "import sys; from pathlib import Path; from services.control.report import write_report\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"write_report(Path({str(run)!r}))\n"
        "assert not {'torch', 'ray', 'vllm', 'deepspeed', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_long_rows_are_thinned_to_means_and_nan_does_not_spread() -> None:
    assert thinned([1.0, 3.0, 5.0, 7.0], 2) == [2.0, 6.0]
    assert thinned([1.0, math.nan, 5.0, 7.0], 2) == [1.0, 6.0]
    assert thinned([1.0, 2.0], 5) == [1.0, 2.0]
    assert smoothed([0.0, 3.0, 6.0], 3) == [1.5, 3.0, 4.5]
    gapped = smoothed([1.0, math.nan, 3.0], 3)
    assert (gapped[0], gapped[2]) == (1.0, 3.0)
    assert math.isnan(gapped[1])


def test_a_long_run_is_thinned_before_it_is_drawn(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path, num_steps=1500, metrics=lambda step: {"entropy": float(step)}))
    (line,) = next(panel for panel in run_panels(run) if panel.title == "Entropy").series
    assert len(line.steps) == len(line.values) == 600
    assert line.values[-1] == pytest.approx(1499, abs=2)
