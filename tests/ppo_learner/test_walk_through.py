"""The walk-throughs of CONTRIBUTING.md, taken: one function, its lines in the dicts, and the learner trains with it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppo_learner.advantages import ADVANTAGES, Episodes
from ppo_learner.algorithms import ALGORITHMS, Algorithm
from ppo_learner.config import LearnerConfig
from ppo_learner.losses import POLICY_LOSSES, TokenLoss
from ppo_learner.preference_algorithms import PREFERENCE_ALGORITHMS, PreferenceAlgorithm
from ppo_learner.preference_config import PreferenceConfig
from ppo_learner.preference_losses import PREFERENCE_LOSSES, Judged, JudgedLogprobs
from ppo_learner.preference_training import PreferenceTask
from tests.ppo_learner.builders import make_group, start_rank
from tests.ppo_learner.supervised_ranks import start_supervised
from tests.ppo_learner.test_advantages import episodes_of
from tests.ppo_learner.test_preference_losses import pairs
from tests.ppo_learner.test_preference_training import make_pairs

ROOT = Path(__file__).parents[2]


def spo(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, rows: Tensor, config: LearnerConfig) -> TokenLoss:
    """Simple Policy Optimization (Xie et al. 2024, arXiv 2401.16025): −(r·A − |A|/(2ε)·(r − 1)²)."""
    ratio = torch.exp(logprobs - old_logprobs)
    objective = ratio * advantages - advantages.abs() / (2 * config.clip_ratio_high) * (ratio - 1).square()
    return TokenLoss(-objective, torch.zeros_like(ratio))


def length_weighted(episodes: Episodes, config: LearnerConfig) -> Tensor:
    """OPO (Hao et al. 2025, arXiv 2505.23585): R less Σ T·R / ΣT of the group, the baseline of the least variance."""
    scores, lengths = episodes.rewards.sum(dim=1), episodes.mask.sum(dim=1)
    sums = [torch.bincount(episodes.groups, weights=column) for column in (lengths * scores, lengths.to(scores.dtype))]
    baselines = (sums[0] / sums[1])[episodes.groups].to(scores.dtype)
    return (scores - baselines)[:, None] * episodes.mask


def hinge_loss(logprobs: JudgedLogprobs, config: PreferenceConfig) -> Judged:
    """RSO's hinge (Liu et al. 2023, arXiv 2309.06657): max(0, 1 − h), with h DPO's lead."""
    rewards = config.scale * logprobs.log_ratios
    return Judged(torch.relu(1 - (rewards[:, 0] - rewards[:, 1])), rewards)


def learns_to_prefer_the_rewarded_completion(algorithm: str, model: Path) -> bool:
    group = make_group([[0, 0, 1], [0, 0, 1]], [1.0, 0.0])
    good, bad = group.group.rollouts
    rank = start_rank(
        LearnerConfig(algorithm=algorithm, lr=1e-3, num_epochs=2),
        model,
        canary_sequences=(good.token_ids, bad.token_ids),
    )
    before, report, after = rank.publish(0), rank.step([group]), rank.publish(1)
    rank.close()
    assert before and after and report.metrics["updates"] == 2
    was, now = (publication.manifest.canary.logprobs[0][-1] for publication in (before, after))
    return now > was


def test_a_new_loss_is_a_function_a_line_and_a_name(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'spo' does not exist"):
        LearnerConfig(algorithm="spo")
    monkeypatch.setitem(POLICY_LOSSES, "spo", spo)
    monkeypatch.setitem(ALGORITHMS, "spo", Algorithm(advantage="group_normalised", loss="spo"))
    # A ratio of 3/2, an advantage of 2, ε = 0.2: −(3 − 2/0.4·0.25).
    new, old, advantages = torch.tensor([1.5]).log(), torch.zeros(1), torch.tensor([2.0])
    by_hand = POLICY_LOSSES["spo"](
        new, old, advantages, torch.zeros(1, dtype=torch.long), LearnerConfig(algorithm="spo")
    )
    assert by_hand.losses.tolist() == pytest.approx([-1.75])
    assert learns_to_prefer_the_rewarded_completion("spo", tiny_model)


def test_a_new_advantage_is_a_function_a_line_and_a_name(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ADVANTAGES, "length_weighted", length_weighted)
    monkeypatch.setitem(ALGORITHMS, "opo", Algorithm(advantage="length_weighted", loss="ppo_clip"))
    # Rewards 1 and 0 of three tokens and one: the baseline is 3/4.
    mask = torch.tensor([[True, True, True], [True, False, False]])
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    found = ADVANTAGES["length_weighted"](episodes_of(rewards, mask), LearnerConfig(algorithm="opo"))
    assert found.tolist() == [[0.25, 0.25, 0.25], [-0.75, 0.0, 0.0]]
    assert learns_to_prefer_the_rewarded_completion("opo", tiny_model)


def test_a_new_preference_loss_is_a_function_a_line_and_a_name(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="'hinge' does not exist"):
        PreferenceConfig(algorithm="hinge")
    monkeypatch.setitem(PREFERENCE_LOSSES, "hinge", hinge_loss)
    monkeypatch.setitem(PREFERENCE_ALGORITHMS, "hinge", PreferenceAlgorithm(settings=("nll_weight",)))
    config = PreferenceConfig(algorithm="hinge", lr=1e-3)
    assert config.scale == 0.1
    # Leads of 5, 15 and −10, of which β = 0.1 makes ½, 1½ and −1.
    by_hand = PREFERENCE_LOSSES["hinge"](pairs([[5, 0], [15, 0], [0, 10]]), config)
    assert by_hand.losses.tolist() == pytest.approx([0.5, 0.0, 2.0])
    rank, examples = start_supervised(PreferenceTask, tiny_model, config), make_pairs(0)
    before = rank.evaluate(examples)
    for _ in range(3):
        rank.step(examples)
    after = rank.evaluate(examples)
    rank.close()
    assert after["loss"] < before["loss"] and after["rewards/margin"] > before["rewards/margin"]


@pytest.mark.parametrize(
    ("heading", "function", "tested_in"),
    [
        ("policy loss", spo, {"test_losses", "numpy_policy_losses", "numpy_advantages"}),
        ("advantage", length_weighted, {"test_advantages", "numpy_advantages"}),
        ("preference loss", hinge_loss, {"test_preference_losses", "numpy_preferences"}),
    ],
)
def test_a_walk_through_names_files_dicts_and_arguments_that_exist(
    heading: str, function: Callable[..., Any], tested_in: set[str]
) -> None:  # Any: what it returns
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.split(f"## Walk-through: a new {heading}\n")[1].split("\n## ")[0]
    paths = re.findall(r"`((?:ppo_learner|tests|docs)/[\w/.]+)`", section)
    assert paths and all((ROOT / path).exists() for path in paths)
    assert tested_in <= {Path(path).stem for path in paths}
    sources = "".join((ROOT / path).read_text() for path in paths if path.startswith("ppo_learner"))
    dicts = re.findall(r"`([A-Z_]{2,})`", section)
    assert dicts and all(re.search(rf"^{name}\b.* = {{$", sources, re.MULTILINE) for name in dicts)
    arguments = re.search(r"\(`([\w`, ]+)`\)", section)
    assert arguments
    taken = [name.strip("` ") for name in arguments[1].split(",")]
    assert taken == [name for name in function.__annotations__ if name != "return"]
