"""The loop on fakes: what is admitted, trained and published, and what becomes of failures."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from rollout_workers.prompts import PromptStream, RowOrder
from services.contracts.errors import CanaryMismatch, RewardUnavailable, SampleNotScorable
from services.contracts.records import (
    Failure,
    FailureCode,
    LearnerReport,
    Publication,
    Reward,
    RewardSample,
    Sampling,
    ScoredGroup,
    SyncReceipt,
    WeightedDemonstrations,
)
from services.control.admission import AdmissionRule
from services.control.controller import Controller, Step
from services.control.ledger import Ledger
from services.control.run_machine import RunMachine
from services.transport.tracing import ids_in
from tests.fakes import FakeLearner, FakeRewards, FakeRollouts, make_prompt

NUM_PROMPTS = 10


class Setting:
    """A controller on fakes, with what it wrote down."""

    def __init__(
        self,
        *,
        rollouts: FakeRollouts | None = None,
        rewards: FakeRewards | None = None,
        learner: FakeLearner | None = None,
        position: int = 0,
        step: int = 0,
        accepted: int = 0,
        max_staleness: int = 0,
        num_steps: int | None = None,
        max_failed_prompts: int = 0,
        greedy_baseline: bool = False,
        max_filtered_per_step: int = 0,
        prepare: Callable[[ScoredGroup], ScoredGroup] = lambda scored: scored,
        demonstrations: Callable[[int], WeightedDemonstrations | None] = lambda step: None,
    ) -> None:
        self.events: list[dict[str, Any]] = []
        self.learner = learner or FakeLearner()
        self.rollouts = rollouts or FakeRollouts()
        prompts = [make_prompt(row) for row in range(NUM_PROMPTS)]
        rule = AdmissionRule(prompts_per_step=4, max_staleness=max_staleness, num_steps=num_steps)
        ledger = Ledger(self.note, counts={"accepted": accepted})
        self.machine = RunMachine(rule, ledger, trained_steps=step, max_filtered_per_step=max_filtered_per_step)
        self.controller = Controller(
            prompts=PromptStream(prompts, RowOrder(NUM_PROMPTS, seed=0, shuffle=True, position=position)),
            rollouts=self.rollouts,
            rewards=rewards or FakeRewards(),
            learner=self.learner,
            machine=self.machine,
            note=self.note,
            sampling=Sampling(num_samples=2, max_completion_tokens=4, seed=5),
            max_failed_prompts=max_failed_prompts,
            greedy_baseline=greedy_baseline,
            prepare=prepare,
            demonstrations=demonstrations,
        )

    def note(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})

    def named(self, event: str) -> list[dict[str, Any]]:
        return [fields for fields in self.events if fields["event"] == event]

    async def run(self, num_steps: int) -> list[Step]:
        await self.controller.publish(self.machine.trained_steps)
        await self.controller.synced()
        async with aclosing(self.controller.steps(num_steps)) as steps:
            return [step async for step in steps]


class SlowLearner(FakeLearner):
    """Takes many turns of the event loop over a step, and remembers what was sampled meanwhile."""

    def __init__(self, rollouts: FakeRollouts) -> None:
        super().__init__()
        self.sampled_meanwhile: list[int] = []
        self._rollouts = rollouts

    async def step(
        self, groups: Sequence[ScoredGroup], demonstrations: WeightedDemonstrations | None = None
    ) -> LearnerReport:
        before = len(self._rollouts.requests)
        for _ in range(50):
            await asyncio.sleep(0)
        self.sampled_meanwhile.append(len(self._rollouts.requests) - before)
        return await super().step(groups, demonstrations)


async def test_each_prompt_of_an_epoch_is_trained_exactly_once() -> None:
    setting = Setting()
    await setting.run(5)
    ended = [event["prompt"] for event in setting.named("trained")]
    assert len(ended) == len(set(ended)) == 20
    assert sorted(ended) == sorted(f"{epoch}-{row}" for epoch in (0, 1) for row in range(NUM_PROMPTS))


async def test_nothing_is_sampled_from_an_older_policy_when_staleness_is_zero() -> None:
    steps = await Setting().run(3)
    assert [step.staleness for step in steps] == [[0, 0, 0, 0]] * 3
    assert [group.group.lowest_policy_version for step in steps for group in step.groups] == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("delay", [lambda row: 0, lambda row: NUM_PROMPTS - row, lambda row: row * 7 % 5])
async def test_the_order_in_which_workers_finish_changes_nothing(delay: Callable[[int], int]) -> None:
    expected, shuffled = FakeLearner(), FakeLearner()
    await Setting(learner=expected).run(3)
    await Setting(learner=shuffled, rollouts=FakeRollouts(delay=delay)).run(3)
    assert shuffled.trained_tokens == expected.trained_tokens


async def test_a_resumed_run_trains_on_the_same_tokens_as_an_uninterrupted_one() -> None:
    whole, first, second = FakeLearner(), FakeLearner(), FakeLearner()
    await Setting(learner=whole).run(4)
    await Setting(learner=first).run(2)
    await Setting(learner=second, position=8, step=2, accepted=8).run(4)
    assert first.trained_tokens + second.trained_tokens == whole.trained_tokens


async def test_weights_are_published_after_each_step_with_the_next_version() -> None:
    setting = Setting()
    await setting.run(2)
    assert [event["version"] for event in setting.named("published")] == [0, 1, 2]
    assert setting.rollouts.version == setting.machine.version == setting.machine.trained_steps == 2


async def test_a_prompt_that_cannot_be_scored_fails_and_another_takes_its_place() -> None:
    learner = FakeLearner()
    rewards = FakeRewards(lambda sample: refuse(sample) if sample.reference["answer"] == "3" else Reward(value=1.0))
    setting = Setting(learner=learner, rewards=rewards, max_failed_prompts=1, num_steps=2)
    await setting.run(2)
    assert [len(batch) for batch in learner.batches] == [4, 4]
    failed = setting.named("failed")
    assert [event["prompt"] for event in failed] == ["0-3"]
    assert "no answer" in str(failed[0]["reason"])


async def test_too_many_failed_prompts_stop_the_run_with_the_last_reason() -> None:
    learner = FakeLearner()
    setting = Setting(learner=learner, rewards=FakeRewards(refuse), max_failed_prompts=2)
    with pytest.raises(SampleNotScorable, match=r"\d prompts .*max_failed_prompts is 2.*no answer"):
        await setting.run(1)
    assert learner.batches == []


async def test_an_outage_stops_the_run_before_anything_is_trained() -> None:
    def unavailable(sample: RewardSample) -> Reward:
        raise RewardUnavailable("nobody answers")

    learner = FakeLearner()
    setting = Setting(learner=learner, rewards=FakeRewards(unavailable))
    with pytest.raises(RewardUnavailable):
        await setting.run(1)
    assert learner.batches == []
    assert setting.machine.trained_steps == 0
    assert setting.controller.learner_is_sound


async def test_the_greedy_answer_is_scored_beside_the_group_and_never_trained_on() -> None:
    def by_its_sampling(sample: RewardSample) -> Reward:
        return Reward(value=7.0 if "greedy" in sample.id else 1.0)

    learner, rollouts = FakeLearner(), FakeRollouts()
    setting = Setting(
        learner=learner, rollouts=rollouts, rewards=FakeRewards(by_its_sampling), greedy_baseline=True, num_steps=1
    )
    await setting.run(1)
    assert [group.baseline for group in learner.batches[0]] == [7.0] * 4
    assert all(len(group.group.rollouts) == 2 and group.rewards[0].value == 1.0 for group in learner.batches[0])
    greedy = [request for request in rollouts.requests if request.prompt.id.endswith("/greedy")]
    assert [(request.sampling.num_samples, request.sampling.temperature) for request in greedy] == [(1, 0.0)] * 4
    assert {event["prompt"] for event in setting.named("accepted")} == {
        request.prompt.id.removesuffix("/greedy") for request in greedy
    }


async def test_a_greedy_answer_that_cannot_be_scored_is_the_prompt_s_failure() -> None:
    def refuse_greedy(sample: RewardSample) -> Reward | Failure:
        if sample.id.startswith("0-3/greedy"):
            return Failure(code=FailureCode.INVALID_SAMPLE, message="no answer")
        return Reward(value=1.0)

    learner = FakeLearner()
    setting = Setting(
        learner=learner,
        rewards=FakeRewards(refuse_greedy),
        greedy_baseline=True,
        max_failed_prompts=1,
        num_steps=2,
    )
    await setting.run(2)
    assert [event["prompt"] for event in setting.named("failed")] == ["0-3"]


async def test_without_such_an_algorithm_nothing_is_sampled_beside_the_groups() -> None:
    learner, rollouts = FakeLearner(), FakeRollouts()
    await Setting(learner=learner, rollouts=rollouts, num_steps=1).run(1)
    assert len(rollouts.requests) == 4
    assert {group.baseline for group in learner.batches[0]} == {None}


async def test_the_reward_sees_the_completion_and_nothing_of_the_prompt_in_its_tokens() -> None:
    seen: list[RewardSample] = []

    def remember(sample: RewardSample) -> Reward:
        seen.append(sample)
        return Reward(value=0.0)

    await Setting(rewards=FakeRewards(remember), num_steps=1).run(1)
    assert len({sample.id for sample in seen}) == 8
    assert all(len(sample.token_ids) == 1 and sample.policy_version == 0 for sample in seen)
    assert {sample.prompt for sample in seen} == {f"prompt {sample.reference['answer']}" for sample in seen}


async def test_with_staleness_sampling_goes_on_while_the_learner_works_and_the_bound_holds() -> None:
    rollouts = FakeRollouts(delay=lambda row: 3 * row)
    learner = SlowLearner(rollouts)
    steps = await Setting(rollouts=rollouts, learner=learner, max_staleness=2).run(6)
    assert sum(learner.sampled_meanwhile) >= 12
    staleness = [stale for step in steps for stale in step.staleness]
    assert 1 <= max(staleness) <= 2


async def test_without_staleness_nothing_is_sampled_while_the_learner_works() -> None:
    rollouts = FakeRollouts()
    learner = SlowLearner(rollouts)
    await Setting(rollouts=rollouts, learner=learner).run(3)
    assert learner.sampled_meanwhile == [0, 0, 0]


async def test_weights_that_every_worker_refuses_stop_the_run() -> None:
    class Refusing(FakeRollouts):
        async def load_weights(self, publication: Publication) -> Sequence[SyncReceipt]:
            if publication.manifest.version == 1:
                raise CanaryMismatch("stale head")
            return await super().load_weights(publication)

    setting = Setting(rollouts=Refusing())
    with pytest.raises(CanaryMismatch):
        await setting.run(3)
    assert setting.machine.trained_steps == 1


async def test_a_paused_run_goes_on_when_it_is_told_to() -> None:
    setting = Setting()
    await setting.controller.publish(0)
    await setting.controller.synced()
    setting.machine.phase = "paused"
    done: list[Step] = []

    async def consume() -> None:
        async with aclosing(setting.controller.steps(2)) as steps:
            async for step in steps:
                done.append(step)

    task = asyncio.create_task(consume())
    for _ in range(100):
        await asyncio.sleep(0)
    assert (done, setting.named("admitted")) == ([], [])
    setting.machine.phase = "running"
    setting.controller.wake()
    await asyncio.wait_for(task, 10)
    assert len(done) == 2


async def test_a_paused_run_that_is_told_to_stop_waits_for_no_further_step() -> None:
    setting = Setting()
    await setting.controller.publish(0)
    await setting.controller.synced()
    numbers = []

    async def consume() -> None:
        async with aclosing(setting.controller.steps(100)) as steps:
            async for step in steps:
                numbers.append(step.number)
                setting.machine.phase = "paused"

    task = asyncio.create_task(consume())
    for _ in range(100):
        await asyncio.sleep(0)
    assert not task.done()
    setting.controller.end_pause()
    await asyncio.wait_for(task, 10)
    assert numbers == [1]


async def test_a_drained_run_trains_what_makes_a_whole_step_and_ends() -> None:
    setting = Setting(max_staleness=1)
    await setting.controller.publish(0)
    await setting.controller.synced()
    async with aclosing(setting.controller.steps(100)) as steps:
        numbers = []
        async for step in steps:
            numbers.append(step.number)
            setting.machine.phase = "draining"
    assert numbers == [1, 2]
    assert setting.machine.is_drained


async def test_a_session_that_is_over_admits_nothing_even_when_it_is_woken() -> None:
    setting = Setting(max_staleness=1)
    await setting.controller.publish(0)
    await setting.controller.synced()
    async with aclosing(setting.controller.steps(100)) as steps:
        async for _ in steps:
            setting.machine.phase = "paused"
            await setting.controller.synced()
            break
    setting.machine.phase = "running"
    assert setting.machine.room() > 0
    before = len(setting.named("admitted"))
    setting.controller.wake()
    assert len(setting.named("admitted")) == before


def refuse(sample: RewardSample) -> Failure:
    return Failure(code=FailureCode.INVALID_SAMPLE, message="no answer in the reference")


async def test_a_scored_group_is_prepared_for_the_learner_before_it_is_accepted() -> None:
    setting = Setting(prepare=lambda scored: replace(scored, rewards=tuple(Reward(value=0.5) for _ in scored.rewards)))
    await setting.run(1)
    assert {reward.value for group in setting.learner.batches[0] for reward in group.rewards} == {0.5}


async def test_each_prompt_is_scored_in_a_trace_of_its_own() -> None:
    traces: dict[str, set[str]] = {}

    def score(sample: RewardSample) -> Reward:
        traces.setdefault(sample.id.partition("/")[0], set()).add(ids_in()["trace_id"])
        return Reward(value=1.0)

    await Setting(rewards=FakeRewards(score)).run(2)

    assert len(traces) >= 8
    assert {len(ids) for ids in traces.values()} == {1}
    assert len(set().union(*traces.values())) == len(traces)


def same_for_even_rows(sample: RewardSample) -> Reward:
    """Every second prompt teaches a group baseline nothing."""
    return Reward(value=0.0 if int(str(sample.reference["answer"])) % 2 == 0 else float(sample.id[-1]))


@pytest.mark.parametrize("delay", [lambda row: 0, lambda row: NUM_PROMPTS - row, lambda row: row * 7 % 5])
async def test_prompts_that_teach_nothing_are_replaced_in_the_same_step(delay: Callable[[int], int]) -> None:
    setting = Setting(
        rollouts=FakeRollouts(delay=delay),
        rewards=FakeRewards(same_for_even_rows),
        num_steps=2,
        max_filtered_per_step=20,
    )
    steps = await setting.run(2)
    assert [len(step.groups) for step in steps] == [4, 4]
    assert all(scored.group.prompt.row % 2 for step in steps for scored in step.groups)
    filtered = [scored.group.prompt for step in steps for scored in step.filtered]
    assert all(prompt.row % 2 == 0 for prompt in filtered)
    assert [event["prompt"] for event in setting.named("filtered")] == [prompt.id for prompt in filtered]
    order = RowOrder(NUM_PROMPTS, seed=0, shuffle=True)
    drawn = [order.draw()[1] for _ in range(len(setting.named("admitted")))]
    assert sorted(row for row in drawn if row % 2) == sorted(s.group.prompt.row for step in steps for s in step.groups)
    assert drawn[-1] % 2 == 1


async def test_with_staleness_a_prompt_that_teaches_nothing_makes_room_while_the_learner_works() -> None:
    rollouts = FakeRollouts(delay=lambda row: 3 * row)
    setting = Setting(
        rollouts=rollouts,
        learner=SlowLearner(rollouts),
        rewards=FakeRewards(same_for_even_rows),
        max_staleness=2,
        num_steps=5,
        max_filtered_per_step=20,
    )
    steps = await setting.run(5)
    assert all(scored.group.prompt.row % 2 for step in steps for scored in step.groups)
    ended = [*setting.named("trained"), *setting.named("filtered")]
    assert len(ended) == len(setting.named("admitted"))
    assert max(stale for step in steps for stale in step.staleness) <= 2
