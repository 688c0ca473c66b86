"""A reward that can be gamed, in whole runs of the control plane on fakes: proxy up, gold down, an alarm that pauses.

The fake policy learns what the proxy pays for: with each version its completions have one more exclamation mark and are
right less often. The proxy pays for marks, the gold reward does not.
"""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rollout_workers.fleet import Fleet
from rollout_workers.prompts import PromptSet
from services.contracts.errors import RewardAlarm, RewardUnavailable
from services.contracts.records import (
    Failure,
    Json,
    LearnerReport,
    Prompt,
    Reward,
    RewardDescription,
    RewardSample,
    RolloutGroup,
    SampleRequest,
    ScoredGroup,
    WeightedDemonstrations,
)
from services.control.config import RunConfig
from services.control.event_log import EventLog
from services.control.interrupts import StopRequest
from services.control.metrics import read_metrics
from services.control.operator import Operator
from services.control.parts import TrainingParts
from services.control.preflight import RunInputs
from services.control.progress import Progress
from services.control.recorder import restore_point
from services.control.report import write_report
from services.control.run_events import RunEvents
from services.control.session import RunContext
from services.control.step_metrics import RunTotals
from services.control.training import Outcome, Sessions
from services.transport.reward_tally import RewardTally
from tests.fakes import FakeLearner, FakeRewards, FakeRollouts, make_prompt
from tests.simulation.virtual_time import VirtualTimeLoop

NUM_STEPS = 6
LONG_S = 1000.0
"""Much longer than all steps take."""

Score = Callable[[RewardSample], Reward]
Story = Callable[[Operator], Coroutine[Any, Any, None]]


class GamingPolicy(FakeRollouts):
    """Its version is how far it has learnt to please the proxy."""

    def __init__(self) -> None:
        super().__init__(complete=self._text)

    def _text(self, prompt: Prompt, index: int) -> str:
        is_right = index < 3 - self.version // 2
        return (str(prompt.reference["answer"]) if is_right else "?") + "!" * self.version

    async def sample(self, request: SampleRequest) -> RolloutGroup:
        await asyncio.sleep(1.0)
        return await super().sample(request)


class MeasuringLearner(FakeLearner):
    """Reports the mean reward, as the real one does, and how far the policy went."""

    async def step(
        self, groups: Sequence[ScoredGroup], demonstrations: WeightedDemonstrations | None = None
    ) -> LearnerReport:
        report = await super().step(groups, demonstrations)
        rewards = [reward.value for scored in groups for reward in scored.rewards]
        return LearnerReport(
            step=report.step,
            metrics={**report.metrics, "reward/mean": sum(rewards) / len(rewards), "kl/reference": 0.01 * report.step},
        )


class EventsWithoutAttempts(RunEvents):
    """No pool tells of attempts here."""

    def note(self, event: str, **fields: Json) -> None:
        self._write(event, **fields)


class Rewards(FakeRewards):
    """What a session uses of a client."""

    description = RewardDescription(name="fake")

    def __init__(self, score: Callable[[RewardSample], Reward | Failure]) -> None:
        super().__init__(score)
        self.tally = RewardTally()


OFF = {"action": "ignore"}


def gold(sample: RewardSample) -> Reward:
    return Reward(value=float(sample.completion.startswith(str(sample.reference["answer"]))))


def hackable(sample: RewardSample) -> Reward:
    return Reward(value=gold(sample).value + 0.5 * sample.completion.count("!"))


class Run:
    """Processes of one run in `folder`, one after the other."""

    def __init__(
        self, folder: Path, proxy: Score, *, golden: Score | None = None, suites: Sequence[Any] = (), **alarms: Any
    ) -> None:
        self.folder = folder
        self.messages: list[str] = []
        self._proxy = proxy
        self._gold = golden or gold
        self._config = RunConfig.model_validate(
            {
                "run": {"dir": folder},
                "model": {"path": "fake"},
                "data": {"prompts": "fake"},
                "reward": {"addresses": ["localhost:1"]},
                "gold": {"addresses": ["localhost:2"]},
                "evaluate": {"prompts": "fake", "every": 1, "num_samples": 4, "suites": suites},
                "metrics": {"sinks": ()},
                "train": {"num_steps": NUM_STEPS, "prompts_per_step": 4, "checkpoint_every": 2},
                "rollout": {"samples_per_prompt": 4, "max_completion_tokens": 8},
                "alarms": alarms,
            }
        )

    def go(self, story: Story | None = None, *, resume: bool = False, stop_after: int = NUM_STEPS) -> Outcome:
        """One process, with `story` beside it; somebody presses Ctrl-C in step `stop_after`."""
        outcomes: list[Outcome] = []

        async def process() -> None:
            with EventLog(self.folder, resume=resume) as log:
                outcomes.append(await self._process(log, story, resume=resume, stop_after=stop_after))

        loop = VirtualTimeLoop()
        loop.run(process())
        assert loop.faults == []
        return outcomes[0]

    async def _process(self, log: EventLog, story: Story | None, *, resume: bool, stop_after: int) -> Outcome:
        stop = StopRequest()

        def update(step: int, metrics: object) -> None:
            stop.requested = stop_after <= step < NUM_STEPS

        progress = cast(Progress, SimpleNamespace(message=self.messages.append, update=update))
        checkpoint, state = restore_point(self.folder, progress, resume=resume)
        prompts = PromptSet(prompts=tuple(make_prompt(row) for row in range(8)))
        run = RunContext(
            config=self._config,
            inputs=RunInputs(
                prompts=prompts,
                held_out=dict.fromkeys(self._config.evaluate.by_name, prompts),
                max_length=100,
                tokenizer=None,
            ),
            progress=progress,
            totals=RunTotals(started=time.monotonic()),
            log=log,
            events=EventsWithoutAttempts(log.note),
        )
        fleet = cast(Fleet, SimpleNamespace(target=1, num_serving=1, status=lambda: (), trouble=""))
        operator = Operator(self._config, fleet, log.note)
        sessions = Sessions(run, checkpoint, state)
        sessions.note_start()
        make_parts: Any = TrainingParts  # Any: the fakes have what a session uses of the real parts
        parts = make_parts(
            rollouts=GamingPolicy(),
            fleet=fleet,
            rewards=Rewards(self._proxy),
            gold=Rewards(self._gold),
            suite_rewards={suite.name: Rewards(gold) for suite in self._config.evaluate.suites},
            learner=MeasuringLearner(),
            restart_learner=None,
        )
        beside = [story(operator)] if story else []
        outcome, *_ = await asyncio.gather(sessions.go_through(parts, operator, stop), *beside)
        return cast(Outcome, outcome)

    def column(self, name: str) -> dict[int, float]:
        return {row.step: row.metrics[name] for row in read_metrics(self.folder) if name in row.metrics}

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = (self.folder / "events.jsonl").read_text().splitlines()
        return [event for line in lines if (event := json.loads(line))["event"] == name]


def test_gold_falls_while_the_proxy_rises_and_the_run_is_paused_until_somebody_resumes_it(tmp_path: Path) -> None:
    run = Run(tmp_path, hackable)
    phases: list[tuple[str, int]] = []
    message = ""

    async def story(operator: Operator) -> None:
        nonlocal message
        await asyncio.sleep(LONG_S)
        message = operator.status().message
        phases.append((operator.status().phase, operator.status().step))
        await asyncio.sleep(LONG_S)
        phases.append((operator.status().phase, operator.status().step))
        await operator.resume()

    outcome = run.go(story)

    # 0.75, 0.75, 0.5, 0.5 of the golden completions are right before and after three steps; the proxy only rises.
    assert outcome.before is not None and outcome.before.gold is not None
    assert outcome.before.gold.metrics()["gold/reward"] == 0.75
    assert run.column("gold/reward") == {1: 0.75, 2: 0.5, 3: 0.5, 4: 0.25, 5: 0.25}
    assert run.column("gold/proxy") == {1: 1.25, 2: 1.5, 3: 2.0, 4: 2.25, 5: 2.75}
    assert run.column("alarms/divergence") == {3: pytest.approx(0.25 / 0.5)}
    assert phases == [("paused", 3), ("paused", 3)]
    assert "paused by an alarm, divergence: the gold reward is 0.50 standard deviations below its best" in message
    assert "`trireme resume` lets it go on" in message
    assert any(f"`trireme resume {tmp_path}`" in text for text in run.messages)
    assert [event["step"] for event in run.events("alarm") if event["action"] == "pause"] == [3]
    assert [event["step"] for event in run.events("checkpoint")][:2] == [2, 3]
    assert outcome.summary["num_steps"] == NUM_STEPS


def test_an_alarm_does_not_hold_a_run_that_is_drained(tmp_path: Path) -> None:
    async def story(operator: Operator) -> None:
        await asyncio.sleep(5.5)
        assert operator.status().step == 2
        await operator.drain()  # The third step, whose evaluation raises the alarm, is under way.

    outcome = Run(tmp_path, hackable).go(story)

    assert (outcome.drained, outcome.summary["num_steps"]) == (True, 3)


def test_a_reward_that_pays_for_what_counts_raises_no_alarm_about_gold(tmp_path: Path) -> None:
    run = Run(tmp_path, gold)
    run.go()
    assert run.events("alarm") == []
    assert run.column("gold/correlation")[1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("poisoned", "alarm", "step"),
    [
        # Counted before the first step and after it.
        (lambda sample: Reward(value=-gold(sample).value), "sign_flip", 1),
        (lambda sample: Reward(value=0.5), "constant", 2),
    ],
)
def test_a_poisoned_reward_is_told_of(
    tmp_path: Path, poisoned: Callable[[RewardSample], Reward], alarm: str, step: int
) -> None:
    run = Run(tmp_path, poisoned, sign_flip={"action": "warn"}, constant={"window": 2}, divergence=OFF)
    run.go()
    assert [(event["alarm"], event["step"]) for event in run.events("alarm")] == [(alarm, step)]


def test_a_run_reads_of_its_own_rewards_that_nothing_is_left_to_tell_apart(tmp_path: Path) -> None:
    run = Run(tmp_path, lambda sample: Reward(value=0.5), constant=OFF, divergence=OFF, saturation={"window": 2})
    run.go()
    assert [(event["alarm"], event["step"]) for event in run.events("alarm")] == [("saturation", 2)]
    assert set(run.column("signals/flat_groups").values()) == {1.0}


def test_an_alarm_that_stops_the_run_leaves_a_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path, hackable, divergence={"action": "stop"})
    with pytest.raises(RewardAlarm, match=r"stopped by an alarm: divergence: .*docs/reward_hacking\.md"):
        run.go()
    assert (tmp_path / "checkpoints" / "step_3" / "COMMIT").is_file()


def test_a_resumed_run_counts_the_evaluations_before_it_was_stopped(tmp_path: Path) -> None:
    run = Run(tmp_path, hackable, divergence={"action": "warn"})
    assert run.go(stop_after=2).interrupted
    assert run.events("alarm") == []
    run.go(resume=True)
    assert [(event["alarm"], event["step"]) for event in run.events("alarm")] == [("divergence", 3)]


def test_a_step_whose_evaluation_failed_has_its_row_and_is_evaluated_on_resume(tmp_path: Path) -> None:
    is_away = True

    def golden(sample: RewardSample) -> Reward:
        if is_away and sample.completion.count("!") == 3:
            raise RewardUnavailable("the gold service is away")
        return gold(sample)

    run = Run(tmp_path, hackable, golden=golden, divergence={"action": "stop"})
    with pytest.raises(RewardUnavailable):
        run.go()
    is_away = False
    with pytest.raises(RewardAlarm, match="divergence"):  # As without the outage.
        run.go(resume=True)
    assert [row.step for row in read_metrics(tmp_path)] == [1, 2, 3]
    assert list(run.column("gold/reward")) == [1, 2]
    made_up = run.events("evaluated")[-1]
    assert (made_up["step"], made_up["metrics"]["gold/reward"]) == (3, 0.5)


def test_the_report_shows_proxy_against_gold_and_what_was_raised(tmp_path: Path) -> None:
    Run(tmp_path, hackable, divergence={"action": "warn"}).go()
    page = write_report(tmp_path).read_text()
    assert "Proxy against gold" in page
    assert "Over the KL to the reference" in page
    assert "divergence: the gold reward is 0.50 standard deviations below its best" in page
