"""A model whose sequences cannot be shared out among the ranks is refused before anything starts, by every trainer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.contracts.errors import UserError
from services.control.config import PreferenceRunConfig, RunConfig, SupervisedRunConfig
from services.control.preference_preflight import check_preferences
from services.control.preflight import check_run, check_supervised
from tests.tiny import write_tiny_model

TRAINERS: dict[str, tuple[Callable[[Any], Any], Any, dict[str, dict[str, Any]]]] = {
    "train": (
        check_run,
        RunConfig,
        {"data": {"prompts": "rows.jsonl"}, "reward": {"services": [{"name": "exact_match"}]}},
    ),
    "sft": (check_supervised, SupervisedRunConfig, {"data": {"prompts": "rows.jsonl", "response_field": "chosen"}}),
    "prefer": (check_preferences, PreferenceRunConfig, {"data": {"examples": "rows.jsonl"}}),
}


@pytest.mark.parametrize("name", TRAINERS)
def test_ranks_that_do_not_divide_the_heads_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, kind, own = TRAINERS[name]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "1+1=", "chosen": "2", "rejected": "3"}) + "\n")
    monkeypatch.chdir(tmp_path)
    sections = {
        "run": {"dir": "run"},
        "model": {"path": str(write_tiny_model(tmp_path / "model")), "dtype": "float32"},
        "learner": {"num_ranks": 3, "sequence_parallel": 3},
    }
    with pytest.raises(UserError, match=r"learner\.sequence_parallel is 3, which does not fit .* its 2 heads"):
        check(kind(**sections | own))
