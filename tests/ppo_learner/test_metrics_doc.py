"""docs/metrics.md names every metric that a real learner step returns, and the report can draw those that matter."""

import re
from pathlib import Path
from typing import Any

import pytest

from ppo_learner.config import LearnerConfig
from services.contracts.records import WeightedDemonstrations
from services.control.catalogue import METRICS
from tests.ppo_learner.builders import random_groups, start_rank
from tests.ppo_learner.test_supervised import make_demonstrations

DOC = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
NAMES = [name for row in re.findall(r"^\| (`[^|]*) \|", DOC, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)]
PATTERNS = [re.compile(re.sub(r"[A-Z]{2,}", r"[^/]+", name)) for name in NAMES]
SETTINGS: list[dict[str, Any]] = [
    {"kl_coefficient": 0.1, "importance_correction": "token_tis"},
    {"algorithm": "grpo_process", "total_weight": 0.5, "overlong_tokens": 4, "overlong_limit": 24},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_metric_of_a_step_is_in_the_document(settings: dict[str, Any], tiny_model: Path) -> None:
    rank = start_rank(LearnerConfig.model_validate(settings), tiny_model)
    try:
        beside = WeightedDemonstrations(demonstrations=tuple(make_demonstrations(0)), coefficient=1.0)
        metrics = rank.step(random_groups(0), beside).metrics
    finally:
        rank.close()
    assert [name for name in metrics if not any(pattern.fullmatch(name) for pattern in PATTERNS)] == []


def test_the_dashboard_of_truth_is_drawn() -> None:
    drawn = {name for name, metric in METRICS.items() if metric.panel}
    assert drawn >= {
        "sampler_gap/mean", "kl/reference", "kl/old", "entropy", "clip_fraction", "ratio/min", "ratio/max",
        "importance/ratio_ess", "advantage/std", "return/std", "explained_variance", "gradient_norm/policy/attention",
        "gradient_norm/critic/head", "learner/tokens_per_second", "learner/memory_bytes", "updates_skipped",
        "demonstrations/loss", "demonstrations/coefficient",
    }  # fmt: skip
