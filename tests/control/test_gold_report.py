"""Proxy against gold in the report: changes by hand, marks, and alarms that a resume made void."""

import json
from pathlib import Path

from services.control.gold_panels import gold_panels
from services.control.report import write_report
from services.control.run_facts import headlines
from services.control.run_record import read_run
from tests.control.test_report import HOSTILE, Page, make_run


def evaluated(proxy: float, gold: float) -> dict[str, float]:
    return {"gold/proxy": proxy, "gold/proxy_std": 0.5, "gold/reward": gold, "gold/reward_std": 0.25}


def watched(step: int) -> dict[str, float]:
    """Evaluated after steps 2 and 4, alarmed there too; the KL is a tenth of the step."""
    row = {"reward/mean": 0.5, "kl/reference": step / 10}
    return row | (evaluated(1.0 + step, 0.75 - step / 8) | {"alarms/divergence": 1.0} if step % 2 == 0 else {})


def watched_run(folder: Path) -> Path:
    events = [
        {"event": "evaluated", "step": 0, "metrics": evaluated(1.0, 0.75)},
        {"event": "alarm", "step": 2, "alarm": "divergence", "action": "warn", "text": f"gold fell {HOSTILE}"},
        {"event": "alarm", "step": 3, "alarm": "divergence", "action": "pause", "text": "made again without it"},
        {"event": "alarm", "step": 4, "alarm": "divergence", "action": "pause", "text": "gold fell further"},
    ]
    make_run(folder, num_steps=5, metrics=watched)
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def test_both_rewards_are_drawn_as_changes_in_deviations_over_steps_and_over_kl(tmp_path: Path) -> None:
    by_step, by_kl = gold_panels(read_run(watched_run(tmp_path)))
    assert [(line.label, line.steps, line.values) for line in by_step.series] == [
        ("proxy", [0, 2, 4], [0.0, 4.0, 8.0]),
        ("gold", [0, 2, 4], [0.0, -1.0, -2.0]),
    ]
    assert by_step.marks == [(2, "divergence")], "an alarm is marked where it was raised first"
    assert [(line.steps, line.values) for line in by_kl.series][1] == ([0.0, 0.2, 0.4], [0.0, -1.0, -2.0])
    assert (by_step.x_label, by_kl.x_label) == ("step", "nats per token")


def test_alarms_are_told_but_those_of_steps_that_a_resume_made_again(tmp_path: Path) -> None:
    page = Page(write_report(watched_run(tmp_path)))
    text = " ".join(page.text.split())
    assert "Proxy against gold" in text and "alarms are dashed" in text
    assert "gold fell further" in text and "made again without it" not in text
    assert "alert('owned')" in text
    assert not {tag for tag, _ in page.tags} & {"script", "img"}


def test_gold_before_and_after_is_a_headline(tmp_path: Path) -> None:
    (line,) = [line for line in headlines(read_run(watched_run(tmp_path))) if line.label == "gold reward"]
    assert (line.before, line.value) == ("0.750", "0.250")


def test_a_run_without_gold_has_no_such_section(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert gold_panels(read_run(run)) == []
    assert "Proxy against gold" not in write_report(run).read_text()
