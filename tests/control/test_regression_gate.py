"""When a gate is breached, what evaluations can be told, and what a run on fakes does about a breach."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.contracts.errors import UserError
from services.control import run_folder
from services.control.evaluate_config import EvaluateConfig
from services.control.regression_gate import breaches, compare
from services.control.report import write_report
from tests.control.test_paired_change import table
from tests.control.test_reward_hacking import Run, hackable

BEFORE, AFTER = table(30, 10, 2, 8)
"""A drop of 0.16, whose 95% interval goes from 0.02 to 0.29."""


def gated(**gate: Any) -> EvaluateConfig:
    return EvaluateConfig.model_validate({"suites": [{"name": "sums", "prompts": "sums.jsonl", "gate": gate}]})


@pytest.mark.parametrize(
    ("max_drop", "breach", "verdict"),
    [
        (0.01, "proven", "breach"),
        (0.05, "proven", "holds"),
        (0.05, "measured", "breach"),
        (0.16, "measured", "holds"),
        (0.2, "measured", "holds"),
        (0.2, "possible", "breach"),
        (0.3, "possible", "holds"),
    ],
)
def test_a_gate_asks_whether_the_drop_is_proven_measured_or_possible(
    max_drop: float, breach: str, verdict: str
) -> None:
    settings = gated(max_drop=max_drop, breach=breach)
    (one,) = compare(settings.by_name, {"sums": BEFORE}, {"sums": AFTER})
    assert (one.name, one.verdict) == ("sums", verdict)
    assert one.to_row()["change"] == pytest.approx(-0.16)
    assert [found.name for found in breaches([one], "stop")] == ["sums"] * (verdict == "breach")
    assert breaches([one], "warn") == []


def test_a_rise_breaches_nothing_and_without_a_gate_nothing_is_judged() -> None:
    settings = EvaluateConfig.model_validate(
        {
            "prompts": "main.jsonl",
            "gate": {"breach": "measured", "action": "warn"},
            "suites": [{"name": "sums", "prompts": "s"}, {"name": "later", "prompts": "l"}],
        }
    )
    before, after = {"evaluation": AFTER, "sums": BEFORE}, {"evaluation": BEFORE, "sums": AFTER, "later": AFTER}
    found = compare(settings.by_name, before, after)
    assert [(one.name, one.verdict) for one in found] == [("evaluation", "holds"), ("sums", "not_gated")]
    (fallen,) = breaches(compare(settings.by_name, {"evaluation": [1.0, 1.0]}, {"evaluation": [1.0, 0.0]}), "warn")
    assert "accuracy 1 before, 0.5 after, -0.5 (95% interval" in str(fallen)
    assert "BREACH: a drop of more than 0 must not be measured" in str(fallen)
    json.dumps(fallen.to_row())


def test_other_prompts_than_before_are_not_compared() -> None:
    with pytest.raises(UserError, match="evaluation sums had 50 prompts before and has 49 now"):
        compare(gated().by_name, {"sums": BEFORE}, {"sums": AFTER[:-1]})


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        ({"suites": [{"name": "a", "prompts": "x", "metric": "acuracy"}]}, "metric 'acuracy' is none; choose one of"),
        ({"suites": [{"name": "a", "prompts": "x", "metric": "pass@4"}]}, "pass@4 is not measured with num_samples 0"),
        ({"suites": [{"name": "a"}]}, "suite a needs either prompts .* neither was given"),
        ({"suites": [{"name": "a", "data": {"prompts": "y"}, "limit": 3}]}, "suite a has .* of its own; set limit"),
        ({"suites": [{"name": "a", "prompts": "x"}] * 2}, "two evaluations are called 'a'"),
        ({"suites": [{"name": "evaluation", "prompts": "x"}]}, "two evaluations are called 'evaluation'"),
        ({"gate": {"max_drop": 0.1}}, "evaluate.gate looks at evaluate.prompts, which names no data"),
        ({"suites": [{"name": "A b", "prompts": "x"}]}, "name"),
    ],
)
def test_what_a_suite_cannot_be_is_refused(section: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        EvaluateConfig.model_validate(section)


def test_a_suite_of_sampled_completions_has_a_metric_for_each_of_its_ks() -> None:
    suite = {"name": "a", "prompts": "x", "num_samples": 4, "ks": [1, 4], "metric": "pass@4"}
    assert EvaluateConfig.model_validate({"suites": [suite]}).by_name["a"].metric == "pass@4"


def truth(**gate: Any) -> dict[str, Any]:
    """A suite whose score falls from 0.75 to 0.5 with the second step, and to 0.25 with the fourth."""
    return {"name": "truth", "prompts": "fake", "num_samples": 4, "metric": "sampled_accuracy", "gate": gate}


QUIET = {"divergence": {"action": "ignore"}}


def test_a_breach_ends_the_run_and_loses_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, hackable, suites=[truth(max_drop=0.1)], **QUIET)
    outcome = run.go()
    assert outcome.breach is not None and outcome.breach.exit_code == 3
    assert "truth: sampled_accuracy 0.75 before, 0.5 after, -0.25" in str(outcome.breach)
    assert (outcome.summary["num_steps"], outcome.drained, outcome.interrupted) == (2, False, False)
    assert [event["step"] for event in run.events("checkpoint")][-1] == 2
    assert (tmp_path / "export").is_dir()
    assert [(row["name"], row["after"], row["verdict"]) for row in outcome.summary["evaluations"]] == [  # type: ignore[union-attr,index,call-overload]
        ("evaluation", 1.0, "not_gated"),
        ("truth", 0.5, "breach"),
    ]
    assert run.events("evaluated")[0]["metrics"]["suites/truth/sampled_accuracy"] == 0.75
    assert run.column("suites/truth/sampled_accuracy") == {1: 0.75, 2: 0.5}
    assert [event["step"] for event in run.events("regression")] == [2]


def test_what_it_was_before_the_first_step_is_known_after_a_resume(tmp_path: Path) -> None:
    Run(tmp_path, hackable, suites=[truth(max_drop=0.1)], **QUIET).go()
    run = Run(tmp_path, hackable, suites=[truth(max_drop=0.4, breach="measured", action="warn")], **QUIET)
    outcome = run.go(resume=True)
    assert outcome.breach is None and outcome.summary["num_steps"] == 6
    # With the sixth step no completion is right any more: 0.75 less, and 0.5 less with the fourth and fifth.
    assert [event["step"] for event in run.events("regression")] == [2, 4, 5, 6]
    (found,) = (one for one in outcome.comparisons if one.name == "truth")
    assert (found.paired.before, found.paired.after, found.verdict) == (0.75, 0.0, "breach")
    assert any("regression after step 4: truth: sampled_accuracy 0.75 before, 0.25 after" in m for m in run.messages)


@pytest.mark.parametrize("change", [{"threshold": 2.0}, {"metric": "reward"}, {"num_samples": 2}])
def test_what_was_measured_otherwise_before_is_not_compared(tmp_path: Path, change: dict[str, Any]) -> None:
    Run(tmp_path, hackable, suites=[truth(max_drop=1.0)], **QUIET).go(stop_after=2)
    run = Run(tmp_path, hackable, suites=[truth(max_drop=0.0) | change], **QUIET)
    outcome = run.go(resume=True)
    assert [one.name for one in outcome.comparisons] == ["evaluation"]
    assert any("no gate is checked on truth" in text and "in another way" in text for text in run.messages)


def test_a_run_with_suites_alone_evaluates_no_step_twice(tmp_path: Path) -> None:
    for stop_after in (2, 6):
        run = Run(tmp_path, hackable, suites=[truth(max_drop=1.0)], **QUIET)
        alone = run._config.evaluate.model_copy(update={"prompts": None})
        run._config = run._config.model_copy(update={"evaluate": alone})
        run.go(stop_after=stop_after, resume=stop_after == 6)
    assert [event["step"] for event in run.events("evaluated")] == [0, 6]


def test_a_gate_on_what_was_not_measured_before_is_said_to_be_idle(tmp_path: Path) -> None:
    Run(tmp_path, hackable, **QUIET).go(stop_after=2)
    run = Run(tmp_path, hackable, suites=[truth(max_drop=0.0)], **QUIET)
    assert run.go(resume=True).breach is None
    assert any("no gate is checked on truth, which was not measured before" in text for text in run.messages)


def test_the_report_shows_every_evaluation_and_what_its_gate_says(tmp_path: Path) -> None:
    outcome = Run(tmp_path, hackable, suites=[truth(max_drop=0.1)], **QUIET).go()
    run_folder.write_summary(tmp_path, outcome.summary)
    page = write_report(tmp_path).read_text()
    row = page[page.index("<th>truth</th>") :].split("</tr>")[0]
    assert re.findall(r"<td>(.*?)</td>", row) == [
        "sampled_accuracy", "75.0%", "50.0%", "-25.0% (-25.0% to -25.0%)", "8", "10.0%", "breach"
    ]  # fmt: skip
    assert "Suite truth: accuracy" in page
