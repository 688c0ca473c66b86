"""What the seconds of a step are, on virtual time: neither a pause, nor what comes before the first step."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

from rollout_workers.prompts import PromptStream, RowOrder
from services.contracts.records import LearnerReport, Sampling, ScoredGroup, WeightedDemonstrations
from services.control.admission import AdmissionRule
from services.control.controller import Controller, Step
from services.control.ledger import Ledger
from services.control.run_machine import RunMachine
from tests.fakes import FakeLearner, FakeRewards, FakeRollouts, make_prompt
from tests.simulation.virtual_time import VirtualTimeLoop

STEP_S, EVALUATION_S, PAUSE_S = 10.0, 120.0, 600.0


class TimedLearner(FakeLearner):
    async def step(
        self, groups: Sequence[ScoredGroup], demonstrations: WeightedDemonstrations | None = None
    ) -> LearnerReport:
        await asyncio.sleep(STEP_S)
        return await super().step(groups, demonstrations)


async def paused_after_the_second_of_four_steps() -> list[Step]:
    loop = asyncio.get_running_loop()
    machine = RunMachine(AdmissionRule(prompts_per_step=4, max_staleness=1), Ledger(lambda event, **fields: None))
    controller = Controller(
        prompts=PromptStream([make_prompt(row) for row in range(100)], RowOrder(100, seed=0, shuffle=False)),
        rollouts=FakeRollouts(),
        rewards=FakeRewards(),
        learner=TimedLearner(),
        machine=machine,
        note=lambda event, **fields: None,
        sampling=Sampling(num_samples=2, max_completion_tokens=4),
        now=loop.time,
    )

    def resume() -> None:
        machine.phase = "running"
        controller.wake()

    await controller.publish(0)
    await controller.synced()
    await asyncio.sleep(EVALUATION_S)
    done = []
    async with aclosing(controller.steps(4)) as steps:
        async for step in steps:
            done.append(step)
            if step.number == 2:
                machine.phase = "paused"
                loop.call_later(PAUSE_S, resume)
    return done


def test_neither_a_pause_nor_what_was_before_is_part_of_a_step_or_waited_for_rollouts() -> None:
    steps = VirtualTimeLoop().run(paused_after_the_second_of_four_steps())
    assert [round(step.seconds["step"], 3) for step in steps] == [STEP_S] * 4
    assert [round(step.learner_wait, 3) for step in steps] == [0.0] * 4
