"""The loop on fakes: what is admitted, trained and published, and what becomes of failures."""

import json
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from rollout_workers.prompts import PromptStream, RowOrder
from services.contracts.errors import RewardUnavailable, SampleNotScorable
from services.contracts.records import Failure, FailureCode, Reward, RewardSample, Sampling
from services.control.admission import AdmissionRule
from services.control.controller import Controller, Step
from services.control.ledger import EVENTS_FILE, Ledger
from tests.fakes import FakeLearner, FakeRewards, FakeRollouts, make_prompt

NUM_PROMPTS = 10


def make_controller(
    folder: Path,
    *,
    rollouts: FakeRollouts | None = None,
    rewards: FakeRewards | None = None,
    learner: FakeLearner | None = None,
    position: int = 0,
    step: int = 0,
    accepted: int = 0,
    max_failed_prompts: int = 0,
) -> Controller:
    prompts = [make_prompt(row) for row in range(NUM_PROMPTS)]
    return Controller(
        prompts=PromptStream(prompts, RowOrder(NUM_PROMPTS, seed=0, shuffle=True, position=position)),
        rollouts=rollouts or FakeRollouts(),
        rewards=rewards or FakeRewards(),
        learner=learner or FakeLearner(),
        ledger=Ledger(folder, counts={"accepted": accepted}),
        admission=AdmissionRule(prompts_per_step=4, max_staleness=0),
        sampling=Sampling(num_samples=2, max_completion_tokens=4, seed=5),
        step=step,
        max_failed_prompts=max_failed_prompts,
    )


async def run(controller: Controller, num_steps: int) -> list[Step]:
    await controller.publish(controller.version)
    async with aclosing(controller.steps(num_steps)) as steps:
        return [step async for step in steps]


def events(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / EVENTS_FILE).read_text().splitlines()]


async def test_each_prompt_of_an_epoch_is_trained_exactly_once(tmp_path: Path) -> None:
    await run(make_controller(tmp_path), 5)
    ended = [event["prompt"] for event in events(tmp_path) if event["event"] == "trained"]
    assert len(ended) == len(set(ended)) == 20
    assert sorted(ended) == sorted(f"{epoch}-{row}" for epoch in (0, 1) for row in range(NUM_PROMPTS))


async def test_nothing_is_sampled_from_an_older_policy_when_staleness_is_zero(tmp_path: Path) -> None:
    steps = await run(make_controller(tmp_path), 3)
    assert [step.staleness for step in steps] == [[0, 0, 0, 0]] * 3
    assert [group.group.lowest_policy_version for step in steps for group in step.groups] == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("delay", [lambda row: 0, lambda row: NUM_PROMPTS - row, lambda row: row * 7 % 5])
async def test_the_order_in_which_workers_finish_changes_nothing(tmp_path: Path, delay: Callable[[int], int]) -> None:
    expected, shuffled = FakeLearner(), FakeLearner()
    await run(make_controller(tmp_path / "a", learner=expected), 3)
    await run(make_controller(tmp_path / "b", learner=shuffled, rollouts=FakeRollouts(delay=delay)), 3)
    assert shuffled.trained_tokens == expected.trained_tokens


async def test_a_resumed_run_trains_on_the_same_tokens_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, first, second = FakeLearner(), FakeLearner(), FakeLearner()
    await run(make_controller(tmp_path / "whole", learner=whole), 4)
    await run(make_controller(tmp_path / "part", learner=first), 2)
    await run(make_controller(tmp_path / "part", learner=second, position=8, step=2, accepted=8), 4)
    assert first.trained_tokens + second.trained_tokens == whole.trained_tokens


async def test_weights_are_published_after_each_step_with_the_next_version(tmp_path: Path) -> None:
    controller = make_controller(tmp_path)
    await run(controller, 2)
    assert [event["version"] for event in events(tmp_path) if event["event"] == "published"] == [0, 1, 2]
    assert [event["version"] for event in events(tmp_path) if event["event"] == "synced"] == [0, 1, 2]
    assert controller.version == controller.trained_steps == 2


async def test_a_prompt_that_cannot_be_scored_fails_and_another_takes_its_place(tmp_path: Path) -> None:
    learner = FakeLearner()
    rewards = FakeRewards(lambda sample: refuse(sample) if sample.reference["answer"] == "3" else Reward(value=1.0))
    await run(make_controller(tmp_path, learner=learner, rewards=rewards, max_failed_prompts=1), 2)
    assert [len(batch) for batch in learner.batches] == [4, 4]
    failed = [event for event in events(tmp_path) if event["event"] == "failed"]
    assert [event["prompt"] for event in failed] == ["0-3"]
    assert "no answer" in str(failed[0]["reason"])


async def test_too_many_failed_prompts_stop_the_run_with_the_last_reason(tmp_path: Path) -> None:
    learner = FakeLearner()
    controller = make_controller(tmp_path, learner=learner, rewards=FakeRewards(refuse), max_failed_prompts=2)
    with pytest.raises(SampleNotScorable, match=r"\d prompts .*max_failed_prompts is 2.*no answer"):
        await run(controller, 1)
    assert learner.batches == []


async def test_an_outage_stops_the_run_before_anything_is_trained(tmp_path: Path) -> None:
    def unavailable(sample: RewardSample) -> Reward:
        raise RewardUnavailable("nobody answers")

    learner = FakeLearner()
    controller = make_controller(tmp_path, learner=learner, rewards=FakeRewards(unavailable))
    with pytest.raises(RewardUnavailable):
        await run(controller, 1)
    assert learner.batches == []
    assert controller.trained_steps == 0


async def test_the_reward_sees_the_completion_and_nothing_of_the_prompt_in_its_tokens(tmp_path: Path) -> None:
    seen: list[RewardSample] = []

    def remember(sample: RewardSample) -> Reward:
        seen.append(sample)
        return Reward(value=0.0)

    await run(make_controller(tmp_path, rewards=FakeRewards(remember)), 1)
    assert len({sample.id for sample in seen}) == 8
    assert all(len(sample.token_ids) == 1 and sample.policy_version == 0 for sample in seen)
    assert {sample.prompt for sample in seen} == {f"prompt {sample.reference['answer']}" for sample in seen}


def refuse(sample: RewardSample) -> Failure:
    return Failure(code=FailureCode.INVALID_SAMPLE, message="no answer in the reference")
