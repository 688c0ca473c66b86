"""Completions that are continued from their own tokens by a real engine, and labels that are made of that."""

from functools import partial

from rollout_workers.pool import RolloutPool
from services.contracts.records import Reward, RewardSample, Sampling
from services.control.evaluate_config import EvaluateConfig
from services.control.step_labels import StepLabeller, StepLabelsConfig
from tests.fakes import FakeRewards
from tests.rollout_workers.conftest import HostedWorker
from tests.rollout_workers.weights import order, publish
from tests.tiny import tiny_tokenizer

SEED = 1


async def test_a_completion_goes_on_from_any_prefix_as_it_went_on_itself(worker: HostedWorker) -> None:
    await worker.load_weights(publish(worker, seed=SEED))
    request = order(num_samples=1, temperature=0.0)
    (whole,) = (await worker.sample(request)).rollouts
    for length in (1, 5, whole.num_completion_tokens - 1):
        prefix = order(whole.token_ids[: 3 + length], num_samples=1, temperature=0.0, max_completion_tokens=24 - length)
        (rest,) = (await worker.sample(prefix)).rollouts
        assert rest.token_ids == whole.token_ids


async def test_labels_count_what_a_real_policy_does_after_each_step(worker: HostedWorker) -> None:
    await worker.load_weights(publish(worker, seed=SEED))
    request = order(num_samples=8)
    sampled = (await worker.sample(request)).rollouts
    rollout = max(sampled, key=lambda rollout: len(rollout.completion))
    separator = rollout.completion[len(rollout.completion) // 2]
    seen: list[str] = []

    def has_a_digit_after_the_first_step(sample: RewardSample) -> Reward:
        seen.append(sample.completion)
        return Reward(value=float(any(character.isdigit() for character in sample.completion[-4:])))

    labeller = StepLabeller(
        StepLabelsConfig(separator=separator, continuations=6),
        rollouts=RolloutPool([worker]),
        rewards=FakeRewards(has_a_digit_after_the_first_step),
        decode=partial(tiny_tokenizer().decode, skip_special_tokens=True),
        sampling=Sampling(num_samples=1, max_completion_tokens=24, seed=3),
        correctness=EvaluateConfig(),
    )
    labels = await labeller.label(request.prompt, rollout)
    assert [label.of for label in labels] == [6] * (len(labels) - 1) + [1]
    assert len(labels) > 1
    continued = [seen[6 * number : 6 * number + 6] for number in range(len(labels) - 1)]
    for label, texts in zip(labels, continued, strict=False):
        assert all(text.startswith(rollout.completion[: label.end]) for text in texts)
        assert len(set(texts)) > 1
        assert label.correct == sum(any(character.isdigit() for character in text[-4:]) for text in texts)
    assert seen[-1] == rollout.completion
