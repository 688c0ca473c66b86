"""`trireme prefer` refuses what cannot be learnt before anything starts, in one message that says what to do."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.cli.__main__ import main

PAIRS = [{"prompt": f"{n}+1=", "chosen": str(n + 1), "rejected": "no"} for n in range(12)]


def labels(*values: object) -> list[dict[str, Any]]:
    return [{"prompt": f"{n}+1=", "completion": str(n), "label": value} for n, value in enumerate(values)]


@pytest.mark.parametrize(
    ("rows", "flags", "messages"),
    [
        (PAIRS, {"learner.algorithm": "dppo"}, ["'dppo' does not exist", "choose one of dpo, cdpo, robust_dpo, ipo"]),
        (PAIRS, {"learner.target_margin": "0.5"}, ["target_margin 0.5 has no effect with algorithm dpo", "use simpo"]),
        (PAIRS, {"learner.bta": "0.5"}, ["flag --learner.bta is not a setting", "learner.beta?"]),
        (PAIRS, {"data.rejected_field": "worse"}, ["rows.jsonl, row 0: no column 'worse'"]),
        (PAIRS, {"data.template": "chat"}, ["has no chat template"]),
        (PAIRS, {"model.max_length": "4"}, ["row 0: prompt and completion have 7 tokens and 4 fit", "unfit_rows"]),
        ([*PAIRS, PAIRS[0] | {"rejected": "1"}], {}, ["row 12: chosen and rejected are the same"]),
        (PAIRS, {"learner.algorithm": "kto"}, ["row 0: no column 'label'"]),
        (labels(True, 0), {"learner.algorithm": "kto"}, ["row 1, column 'label'", "the label is 0"]),
        (labels(*[True] * 9), {"learner.algorithm": "kto"}, ["rows to learn are desirable", "`trireme sft`"]),
        (PAIRS, {"data.examples": "nowhere.jsonl"}, ["data file 'nowhere.jsonl' does not exist"]),
        (PAIRS, {"model.path": "/nowhere"}, ["model.path '/nowhere' is no folder with a config.json"]),
    ],
)
def test_what_cannot_be_learnt_is_refused(
    rows: list[dict[str, Any]],
    flags: dict[str, str],
    messages: list[str],
    task: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tmp_path / "run.yaml"
    sections = {
        "run": {"dir": str(tmp_path / "run")},
        "model": {"path": str(task / "model"), "dtype": "float32"},
        "data": {"examples": str(tmp_path / "rows.jsonl"), "validation_share": 0.0},
    }
    config.write_text(json.dumps(sections))
    given = [part for name, value in flags.items() for part in (f"--{name}", value)]
    assert main(["prefer", str(config), *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    for message in messages:
        assert message in error
    assert not (tmp_path / "run").exists()


def test_its_help_names_every_algorithm_and_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["prefer", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for name in ("simpo", "--learner.beta", "--learner.desirable_weight", "--data.unfit_rows", "--evaluate.patience"):
        assert name in shown
