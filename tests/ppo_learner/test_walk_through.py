"""The walk-through of CONTRIBUTING.md, taken: one function, one line in each dict, and the learner trains with it."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ppo_learner.algorithms import ALGORITHMS, Algorithm
from ppo_learner.config import LearnerConfig
from ppo_learner.losses import POLICY_LOSSES, TokenLoss
from tests.ppo_learner.builders import make_group, start_rank

ROOT = Path(__file__).parents[2]


def spo(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, rows: Tensor, config: LearnerConfig) -> TokenLoss:
    """Simple Policy Optimization (Xie et al. 2024, arXiv 2401.16025): −(r·A − |A|/(2ε)·(r − 1)²)."""
    ratio = torch.exp(logprobs - old_logprobs)
    objective = ratio * advantages - advantages.abs() / (2 * config.clip_ratio_high) * (ratio - 1).square()
    return TokenLoss(-objective, torch.zeros_like(ratio))


def test_a_new_loss_is_a_function_and_a_line_in_each_dict(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'spo' does not exist"):
        LearnerConfig(algorithm="spo")
    monkeypatch.setitem(POLICY_LOSSES, "spo", spo)
    monkeypatch.setitem(ALGORITHMS, "spo", Algorithm(advantage="group_normalised", loss="spo"))

    group = make_group([[0, 0, 1], [0, 0, 1]], [1.0, 0.0])
    good, bad = group.group.rollouts
    rank = start_rank(
        LearnerConfig(algorithm="spo", lr=1e-3, num_epochs=2),
        tiny_model,
        canary_sequences=(good.token_ids, bad.token_ids),
    )
    before, report, after = rank.publish(0), rank.step([group]), rank.publish(1)
    rank.close()
    assert before and after and report.metrics["updates"] == 2
    was, now = (publication.manifest.canary.logprobs[0][-1] for publication in (before, after))
    assert now > was


def test_the_walk_through_names_files_and_dicts_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.split("## Walk-through: a new policy loss")[1].split("\n## ")[0]
    paths = re.findall(r"`((?:ppo_learner|tests|docs)/[\w/.]+)`", section)
    assert paths and all((ROOT / path).exists() for path in paths)
    arguments = re.search(r"\(`([\w`, ]+)`\)", section)
    assert arguments
    taken = [name.strip("` ") for name in arguments[1].split(",")]
    assert taken == [name for name in spo.__annotations__ if name != "return"]
