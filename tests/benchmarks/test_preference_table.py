"""What the preference methods are held against is what their papers say, and a policy that is trained gets there."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.preference_optima import METHODS, Floats, chances, optimum, total_variation
from benchmarks.preference_table import draw_counts, train, write_bandit
from tests.ppo_learner.numpy_preferences import kto, kto_point

REFERENCE = np.log([0.3, 0.1, 0.05])


@pytest.mark.parametrize("name", ["dpo", "robust_dpo, an eighth flipped", "ipo"])
def test_with_the_true_chances_the_minimum_of_a_loss_is_its_papers_closed_form(name: str) -> None:
    method = METHODS[name]
    assert method.loss is not None and method.population is not None
    counts = chances(flipped=method.flipped) * (1 - np.eye(len(REFERENCE)))
    best = optimum(method.loss, REFERENCE, counts)
    assert total_variation(best, REFERENCE + method.population) < 1e-6
    assert total_variation(best, REFERENCE) > 0.2


def test_ktos_gradient_always_leads_to_the_majority_where_dpo_keeps_to_the_minority() -> None:
    """Gradient descent on the logits from a reference that has the minority's completion six times as likely."""
    method = METHODS["kto, two completions 4 : 1"]
    minority, majority = rivals = list(method.rivals)
    counts = draw_counts(method, 0)
    logits = np.append(REFERENCE, np.log(1 - np.exp(REFERENCE).sum()))
    shares = [np.exp(REFERENCE[majority])]
    for _ in range(600):
        policy = normalised(logits)[:-1]
        point = kto_point(np.repeat(policy - REFERENCE, (counts + counts.T).sum(axis=1).astype(int)))
        pull = slope(lambda at, point=point: kto_of_rows(at, counts, point), policy)
        assert pull[majority] < 0 < pull[minority] and pull[1] == 0
        logits -= 10 * slope(lambda at, point=point: kto_of_rows(normalised(at)[:-1], counts, point), logits)
        shares.append(np.exp(normalised(logits)[majority]))
    assert (np.diff(shares) > 0).all() and shares[-1] > 0.99
    assert method.population is not None and METHODS["dpo"].loss is not None
    assert total_variation(normalised(logits)[rivals], (REFERENCE + method.population)[rivals]) < 1e-3
    assert np.diff(optimum(METHODS["dpo"].loss, REFERENCE, counts)[rivals]) < 0


def kto_of_rows(policy: Floats, counts: Floats, point: float) -> float:
    """The mean loss with z fixed: of every preference a row of the winner, desirable, and one of the loser."""
    sides = (counts.sum(axis=1), True), (counts.sum(axis=0), False)
    losses = [
        num_rows[k] * kto(policy[[k]], REFERENCE[k], label, point, 1.0, (1.0, 1.0))
        for num_rows, label in sides
        for k in range(len(policy))
    ]
    return float(sum(losses) / (2 * counts.sum()))


def normalised(logits: Floats) -> Floats:
    return np.asarray(logits - np.logaddexp.reduce(logits))


def slope(value: Callable[[Floats], float], at: Floats, step: float = 1e-5) -> Floats:
    """The gradient by central differences."""
    return np.array([(value(at + h) - value(at - h)) / (2 * step) for h in step * np.eye(len(at))])


@pytest.fixture(scope="module")
def bandit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # More would only wait for each other on so little: ten times as long on a busy machine.
    yield write_bandit(tmp_path_factory.mktemp("bandit"), 1)
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize("name", {method.learner["algorithm"]: name for name, method in METHODS.items()}.values())
def test_a_policy_trained_by_any_algorithm_comes_near_its_papers_optimum(name: str, bandit: Path) -> None:
    outcome = train(bandit, name, 1, num_steps=100)
    assert outcome.in_order == 1
    assert outcome.before is not None and outcome.after is not None
    assert outcome.after < 0.003 < outcome.before


def test_kto_brings_each_completion_to_the_side_that_most_of_its_labels_ask_for(bandit: Path) -> None:
    assert train(bandit, "kto", 1, num_steps=60).as_labelled == 1
