"""Held-out accuracy and pass@k on fakes with known answers."""

from itertools import combinations

import pytest

from services.contracts.errors import SampleNotScorable
from services.contracts.records import Failure, FailureCode, Reward, RewardSample, Sampling
from services.control.evaluate_config import EvaluateConfig
from services.control.evaluation import evaluate, pass_at_k
from tests.fakes import FakeRewards, FakeRollouts, make_prompt

SAMPLING = Sampling(num_samples=8, temperature=0.7, max_completion_tokens=4)
PROMPTS = [make_prompt(row) for row in range(4)]


def one_if_index_below_row(sample: RewardSample) -> Reward:
    """Sample i of row r is correct when i < r: rows 0 to 3 have 0, 1, 2 and 3 correct ones."""
    return Reward(value=float(int(sample.completion) < int(str(sample.reference["answer"]))))


@pytest.mark.parametrize(("correct", "k"), [(0, 1), (1, 1), (1, 3), (3, 2), (5, 5), (4, 2)])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(correct: int, k: int) -> None:
    samples = [True] * correct + [False] * (5 - correct)
    subsets = list(combinations(samples, k))
    assert pass_at_k(5, correct, k) == pytest.approx(sum(any(subset) for subset in subsets) / len(subsets))


async def test_greedy_and_sampled_accuracy_are_measured_apart() -> None:
    rollouts = FakeRollouts()
    config = EvaluateConfig(num_samples=4, ks=(1, 4))
    evaluation = await evaluate(
        PROMPTS, rollouts=rollouts, rewards=FakeRewards(one_if_index_below_row), sampling=SAMPLING, config=config
    )
    assert evaluation.accuracy == evaluation.metrics()["evaluation/reward"] == 3 / 4
    assert evaluation.sampled_accuracy == pytest.approx((0 + 1 + 2 + 3) / 16)
    assert evaluation.pass_at == {1: pytest.approx(6 / 16), 4: 3 / 4}
    temperatures = {(request.sampling.temperature, request.sampling.num_samples) for request in rollouts.requests}
    assert temperatures == {(0.0, 1), (0.7, 4)}


async def test_one_component_can_be_what_counts() -> None:
    rewards = FakeRewards(lambda sample: Reward(value=0.2, components={"math": 1.0, "length": -0.8}))
    config = EvaluateConfig(component="math")
    evaluation = await evaluate(PROMPTS, rollouts=FakeRollouts(), rewards=rewards, sampling=SAMPLING, config=config)
    assert evaluation.accuracy == 1.0
    with pytest.raises(
        SampleNotScorable, match=r"evaluate.component is 'maths', and the reward has \['length', 'math'\]"
    ):
        await evaluate(
            PROMPTS,
            rollouts=FakeRollouts(),
            rewards=rewards,
            sampling=SAMPLING,
            config=EvaluateConfig(component="maths"),
        )


async def test_a_failure_is_no_wrong_answer() -> None:
    rewards = FakeRewards(lambda sample: Failure(code=FailureCode.INTERNAL, message="broken"))
    with pytest.raises(SampleNotScorable, match="broken"):
        await evaluate(PROMPTS, rollouts=FakeRollouts(), rewards=rewards, sampling=SAMPLING, config=EvaluateConfig())


async def test_gold_scores_the_very_completions_that_the_proxy_scores() -> None:
    seen: dict[str, list[str]] = {"proxy": [], "gold": []}

    def scoring(name: str, value: float) -> FakeRewards:
        def score(sample: RewardSample) -> Reward:
            seen[name].append(f"{sample.id} {sample.completion}")
            return Reward(value=value * int(sample.completion))

        return FakeRewards(score)

    evaluation = await evaluate(
        PROMPTS,
        rollouts=FakeRollouts(),
        rewards=scoring("proxy", 1.0),
        gold=scoring("gold", -2.0),
        sampling=SAMPLING,
        config=EvaluateConfig(num_samples=3),
    )
    assert seen["gold"] == seen["proxy"] != []
    # Of the sampled completions 0, 1 and 2 of each prompt; the greedy ones are not among them.
    assert evaluation.gold is not None
    assert sorted(evaluation.gold.proxy) == [0.0] * 4 + [1.0] * 4 + [2.0] * 4
    metrics = evaluation.metrics()
    assert (metrics["gold/reward"], metrics["gold/proxy"], metrics["gold/correlation"]) == (
        -2.0,
        1.0,
        pytest.approx(-1),
    )


async def test_a_gold_reward_that_fails_is_no_number() -> None:
    broken = FakeRewards(lambda sample: Failure(code=FailureCode.INTERNAL, message="broken"))
    with pytest.raises(SampleNotScorable, match="gold, row 0: broken"):
        await evaluate(
            PROMPTS,
            rollouts=FakeRollouts(),
            rewards=FakeRewards(),
            gold=broken,
            sampling=SAMPLING,
            config=EvaluateConfig(),
        )
