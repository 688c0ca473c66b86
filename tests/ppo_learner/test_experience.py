"""From rewards, KL and values to advantages and targets: numbers worked by hand, and each algorithm against NumPy."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ppo_learner.advantage_config import READ_BY
from ppo_learner.advantages import ADVANTAGES
from ppo_learner.algorithms import ALGORITHMS
from ppo_learner.batching import batch_rollouts
from ppo_learner.config import LearnerConfig
from ppo_learner.experience import Evaluation, Experience, make_experience
from ppo_learner.kl import KL_ESTIMATORS
from ppo_learner.return_moments import ReturnMoments
from services.contracts.records import ScoredGroup
from tests.ppo_learner import numpy_advantages, numpy_objective, numpy_reference
from tests.ppo_learner.builders import make_group, random_groups
from tests.ppo_learner.columns import logs, tokens

LN2 = math.log(2)
KL_COEFFICIENT = 0.1
WEIGHTS = {"gamma": 0.97, "gae_lambda": 0.9, "total_weight": 0.7}
ON_REWARDS = [name for name in ALGORITHMS if LearnerConfig(algorithm=name).kl_placement == "reward"]


def made_of(
    groups: Sequence[ScoredGroup],
    evaluation: Evaluation,
    settings: dict[str, Any],
    moments: ReturnMoments | None = None,
) -> Experience:
    return make_experience(
        groups,
        batch_rollouts(groups),
        evaluation,
        LearnerConfig.model_validate(settings),
        version=0,
        kl_coefficient=KL_COEFFICIENT,
        return_moments=moments or ReturnMoments(),
    )


def one_completion(estimator: str, **settings: Any) -> Experience:
    """Two tokens and a total of 3; π_ref/π is ½ and then 2; values of ¼ and ½."""
    evaluation = Evaluation(
        logprobs=logs(0.5, 0.25), reference_logprobs=logs(0.25, 0.5), values=torch.tensor([0.25, 0.5])
    )
    settings = {"kl_estimator": estimator, "whiten_advantages": False} | settings
    return made_of([make_group([[0, 1, 1]], [3.0])], evaluation, settings)


OF_TOKENS = {
    "k1": (LN2, -LN2),
    "k2": (LN2**2 / 2, LN2**2 / 2),
    "k3": (LN2 - 1 / 2, 1 - LN2),
}
"""The KL of each of the two tokens."""


@pytest.mark.parametrize("estimator", OF_TOKENS)
def test_a_kl_penalty_in_the_rewards_worked_by_hand(estimator: str) -> None:
    # Each token loses a tenth of its KL, so the first return lacks both and the last its own.
    first, last = OF_TOKENS[estimator]
    returns = tokens(3 - 0.1 * (first + last), 3 - 0.1 * last).float()
    made = one_completion(estimator, gae_lambda=1.0)
    assert made.returns is not None
    torch.testing.assert_close(made.returns, returns)
    torch.testing.assert_close(made.advantages, returns - torch.tensor([0.25, 0.5]))
    torch.testing.assert_close(one_completion(estimator, algorithm="reinforce").advantages, returns)


def test_a_penalty_that_stands_in_the_loss_is_not_taken_off_the_rewards() -> None:
    assert one_completion("k3", algorithm="reinforce", kl_placement="loss").advantages.tolist() == [3.0, 3.0]


def test_the_weight_of_a_total_is_none_of_the_penalty() -> None:
    found = one_completion("k1", algorithm="reinforce", total_weight=2.0).advantages
    torch.testing.assert_close(found, tokens(6.0, 6 + 0.1 * LN2).float())


def test_whitening_is_of_all_tokens_and_leaves_targets_and_metrics_alone() -> None:
    # Returns 1, 1 and 4: mean 2, deviation √2.
    groups = [make_group([[0, 1, 1], [0, 1]], [1.0, 4.0])]
    made = made_of(groups, Evaluation(values=torch.zeros(3)), {"gae_lambda": 1.0})
    torch.testing.assert_close(made.advantages, torch.tensor([-(0.5**0.5), -(0.5**0.5), 2**0.5]), rtol=1e-5, atol=0)
    assert made.returns is not None and made.targets is not None
    assert made.raw_advantages.tolist() == made.returns.tolist() == made.targets.tolist() == [1.0, 1.0, 4.0]


def test_a_greedy_baseline_weighs_as_much_as_the_totals_that_it_is_compared_with() -> None:
    groups = [replace(make_group([[0, 1, 1], [0, 1]], [1.0, 4.0]), baseline=3.0)]
    found = made_of(groups, Evaluation(), {"algorithm": "remax", "total_weight": 0.5}).advantages
    assert found.tolist() == [-1.0, -1.0, 0.5]


def greedily_answered(seed: int) -> list[ScoredGroup]:
    """Random groups whose greedy answers earned something else than their means."""
    return [replace(scored, baseline=0.3 * number - 0.2) for number, scored in enumerate(random_groups(seed))]


def random_evaluation(groups: Sequence[ScoredGroup], seed: int) -> Evaluation:
    torch.manual_seed(seed)
    num_actions = batch_rollouts(groups).num_actions
    logprobs, reference, values = torch.randn(3, num_actions, dtype=torch.float64)
    return Evaluation(logprobs=logprobs, reference_logprobs=reference, values=values)


def told(groups: Sequence[ScoredGroup], evaluation: Evaluation, estimator: str | None) -> numpy_advantages.Groups:
    """The same as NumPy takes it; without an estimator no token loses anything."""
    assert evaluation.logprobs is not None and evaluation.reference_logprobs is not None
    assert evaluation.values is not None
    new, reference, values = (
        column.numpy() for column in (evaluation.logprobs, evaluation.reference_logprobs, evaluation.values)
    )
    kl = numpy_objective.kl_estimates(estimator, new, reference) if estimator else np.zeros_like(new)
    found, begin = [], 0
    for scored in groups:
        completions = []
        for rollout, reward in zip(scored.group.rollouts, scored.rewards, strict=True):
            sampled = [position for position, is_sampled in enumerate(rollout.loss_mask) if is_sampled]
            here = slice(begin, begin + len(sampled))
            completions.append(
                numpy_advantages.Completion(
                    total=reward.value,
                    steps=[(sampled.index(step.token), step.value) for step in reward.steps if step.token is not None],
                    greedy=scored.baseline or 0.0,
                    penalty=KL_COEFFICIENT * kl[here],
                    values=values[here],
                )
            )
            begin = here.stop
        found.append(completions)
    return found


def assert_agreement(name: str, seed: int, settings: dict[str, Any], estimator: str | None) -> None:
    groups = greedily_answered(seed)
    evaluation = random_evaluation(groups, seed)
    read = {
        key: weight for key, weight in WEIGHTS.items() if ALGORITHMS[name].advantage in READ_BY.get(key, ADVANTAGES)
    }
    found = made_of(groups, evaluation, {"algorithm": name} | read | settings).advantages
    by_hand = numpy_advantages.ALGORITHMS[name]
    expected = by_hand(told(groups, evaluation, estimator), numpy_advantages.Settings(**WEIGHTS))
    np.testing.assert_allclose(found.numpy(), np.concatenate(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
@pytest.mark.parametrize("name", [name for name in ON_REWARDS if name != "grpo_process"])
def test_the_advantages_of_an_algorithm_agree_with_numpy(name: str, estimator: str) -> None:
    for seed in range(3):
        assert_agreement(name, seed, {"kl_placement": "reward", "kl_estimator": estimator}, estimator)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_with_the_kl_in_the_loss_the_advantages_of_an_algorithm_agree_with_numpy(name: str) -> None:
    for seed in range(3):
        assert_agreement(name, seed, {"kl_placement": "loss"}, None)


def test_every_algorithm_and_so_every_advantage_has_a_reference() -> None:
    assert numpy_advantages.ALGORITHMS.keys() == ALGORITHMS.keys()
    assert {ALGORITHMS[name].advantage for name in numpy_advantages.ALGORITHMS} == set(ADVANTAGES)


def test_what_a_critic_is_to_predict_agrees_with_numpy_on_its_own_scale() -> None:
    groups = random_groups(4)
    evaluation = random_evaluation(groups, 4)
    assert evaluation.values is not None
    past = np.array([2.0, 5.0, 11.0])
    made = made_of(
        groups, evaluation, WEIGHTS | {"normalise_returns": True}, ReturnMoments().merged(torch.from_numpy(past))
    )
    values = past.mean() + past.std() * evaluation.values
    completions = told(groups, replace(evaluation, values=values), "k1")
    advantages = numpy_advantages.critic(completions, numpy_advantages.Settings(**WEIGHTS))
    returns = np.concatenate(advantages) + values.numpy()
    mean, deviation = numpy_reference.running_moments(np.concatenate([past, returns]))
    for found, expected in [
        (made.values, values.numpy()),
        (made.returns, returns),
        (made.old_values, (values.numpy() - mean) / deviation),
        (made.targets, (returns - mean) / deviation),
    ]:
        assert found is not None
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)
