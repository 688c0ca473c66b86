"""`trireme prefer` refuses what cannot be learnt before anything starts, in one message that says what to do."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.cli.__main__ import main

PAIRS = [{"prompt": f"{n}+1=", "chosen": str(n + 1), "rejected": "no"} for n in range(12)]


def labels(*values: object) -> list[dict[str, Any]]:
    return [{"prompt": f"{n}+1=", "completion": str(n), "label": value} for n, value in enumerate(values)]


def arguments(rows: list[dict[str, Any]], flags: dict[str, str], task: Path, folder: Path) -> list[str]:
    """Write rows and configuration; returns what follows `trireme prefer`."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = {
        "run": {"dir": str(folder / "run")},
        "model": {"path": str(task / "model"), "dtype": "float32"},
        "data": {"examples": str(folder / "rows.jsonl"), "validation_share": 0.0},
    }
    (folder / "run.yaml").write_text(json.dumps(sections))
    return [str(folder / "run.yaml"), *(part for name, value in flags.items() for part in (f"--{name}", value))]


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
    assert main(["prefer", *arguments(rows, flags, task, tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    for message in messages:
        assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "flags", "shown"),
    [
        (
            [*PAIRS, PAIRS[0] | {"rejected": "1"}],
            {"data.unfit_rows": "drop"},
            [
                "algorithm: dpo", "learner rank 0", "12 rows to learn", "0 for validation, 1 left out (same)",
                "row 0, chosen", "given      4  '0+1='", "learnt     2  '1<eos>'", "row 0, rejected",
                "learnt     3  'no<eos>'",
            ],
        ),
        (
            labels(True, False),
            {"learner.algorithm": "kto"},
            ["algorithm: kto", "2 rows to learn", "row 0, desirable", "learnt     2  '0<eos>'"],
        ),
    ],
)  # fmt: skip
def test_a_dry_run_shows_what_is_learnt_of_the_rows_and_starts_nothing(
    rows: list[dict[str, Any]],
    flags: dict[str, str],
    shown: list[str],
    task: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["prefer", *arguments(rows, flags, task, tmp_path), "--dry-run"]) == 0
    output = capsys.readouterr().out
    for expected in shown:
        assert expected in output
    assert not (tmp_path / "run").exists()


def test_its_help_names_every_algorithm_and_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["prefer", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for name in (
        "simpo",
        "--dry-run",
        "--learner.beta",
        "--learner.desirable_weight",
        "--data.unfit_rows",
        "--evaluate.patience",
    ):
        assert name in shown
