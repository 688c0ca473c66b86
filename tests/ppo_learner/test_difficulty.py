"""Difficulty and length within a group: numbers worked by hand, NumPy loops, and the advantages that come of them."""

import math

import numpy as np
import pytest
import torch

from ppo_learner.advantages import ADVANTAGES
from ppo_learner.config import LearnerConfig
from ppo_learner.difficulty import concise_scores, difficulty_weights
from tests.ppo_learner import numpy_reference
from tests.ppo_learner.test_advantages import episodes_of

GROUPS = torch.tensor([0, 0, 0, 0, 1, 1, 1])


def test_a_rare_success_weighs_more_than_a_common_one_and_so_does_a_rare_failure() -> None:
    # One of four solved: w(¼) = 0.4 + 1.1/(1 + e^−5) for it, and w(¾) = 0.4 + 1.1/2 for each failure.
    solved = torch.tensor([True, False, False, False])
    found = difficulty_weights(torch.tensor([1.5, -0.5, -0.5, -0.5]), solved, torch.zeros(4).long())
    torch.testing.assert_close(found, torch.tensor([0.4 + 1.1 / (1 + math.exp(-5)), 0.95, 0.95, 0.95]))
    mirrored = difficulty_weights(torch.tensor([-1.5, 0.5, 0.5, 0.5]), ~solved, torch.zeros(4).long())
    torch.testing.assert_close(mirrored, found)


def test_solutions_earn_by_their_length_among_solutions() -> None:
    # Lengths 2 and 6 of the solutions: mean 4, deviation √8, so z is ∓1/√2. The failure of 100 tokens is left alone.
    found = concise_scores(
        torch.tensor([1.0, 1.0, 0.0]),
        torch.tensor([True, True, False]),
        torch.tensor([2, 6, 100]),
        torch.zeros(3).long(),
        strength=0.5,
    )
    torch.testing.assert_close(found, torch.tensor([math.exp(0.5**1.5), math.exp(-(0.5**1.5)), 0.0]))


@pytest.mark.parametrize("seed", range(3))
def test_random_groups_agree_with_numpy(seed: int) -> None:
    torch.manual_seed(seed)
    advantages, scores = torch.randn(2, len(GROUPS), dtype=torch.float64)
    solved, lengths = torch.rand(len(GROUPS)) < 0.5, torch.randint(1, 9, (len(GROUPS),))
    weights = difficulty_weights(advantages, solved, GROUPS)
    concise = concise_scores(scores, solved, lengths, GROUPS, strength=0.3)
    for group in (0, 1):
        here = group == GROUPS
        flags = solved[here].tolist()
        expected = [numpy_reference.difficulty_weight(float(advantage), flags) for advantage in advantages[here]]
        np.testing.assert_allclose(weights[here].numpy(), expected, rtol=1e-12)
        expected = numpy_reference.concise(scores[here].numpy(), flags, lengths[here].tolist(), 0.3)
        np.testing.assert_allclose(concise[here].numpy(), expected, rtol=1e-12)


def test_of_two_solutions_the_shorter_one_is_better_and_a_failure_is_worse_than_both() -> None:
    mask = torch.arange(5)[None, :] < torch.tensor([2, 5, 3])[:, None]
    rewards = torch.zeros(3, 5, dtype=torch.float64)
    rewards[0, 1] = rewards[1, 4] = 1.0
    episodes = episodes_of(rewards, mask)
    short, long, wrong = ADVANTAGES["group_normalised"](episodes, LearnerConfig(algorithm="grpo", length_penalty=0.05))[
        :, 0
    ]
    assert short > long > wrong
    plain = ADVANTAGES["group_normalised"](episodes, LearnerConfig(algorithm="grpo"))[:, 0]
    assert plain[0] == plain[1]
    weighted = ADVANTAGES["group_normalised"](episodes, LearnerConfig(algorithm="grpo", difficulty_weighting=True))
    torch.testing.assert_close(
        weighted[:, 0] / plain, difficulty_weights(plain, rewards.sum(dim=1) >= 1, episodes.groups)
    )
