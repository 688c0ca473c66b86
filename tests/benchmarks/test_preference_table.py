"""What the preference methods are held against is what their papers say, and a policy that is trained gets there."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.preference_optima import METHODS, chances, optimum, total_variation
from benchmarks.preference_table import train, write_bandit

REFERENCE = np.log([0.3, 0.1, 0.05])


@pytest.mark.parametrize("name", ["dpo", "robust_dpo, an eighth flipped", "ipo"])
def test_with_the_true_chances_the_minimum_of_a_loss_is_its_papers_closed_form(name: str) -> None:
    method = METHODS[name]
    assert method.loss is not None and method.population is not None
    counts = chances(flipped=method.flipped) * (1 - np.eye(len(REFERENCE)))
    best = optimum(method.loss, REFERENCE, counts)
    assert total_variation(best, REFERENCE + method.population) < 1e-6
    assert total_variation(best, REFERENCE) > 0.2


def test_a_policy_trained_by_dpo_comes_to_its_papers_closed_form(tmp_path: Path) -> None:
    outcome = train(write_bandit(tmp_path, 0), "dpo, exact chances", 0, num_steps=60)
    assert outcome.in_order == 1
    assert outcome.before is not None and outcome.population is not None
    assert outcome.population < 0.02 < outcome.before
