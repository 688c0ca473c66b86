"""The loop from one restore point to its end, with everything that is written around it.

It must not know how parts start, nor who asks for what. Invariants: a checkpoint holds the learner, the books and the
groups of one and the same moment between two steps; a checkpoint that the disk refuses costs nothing but itself.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rollout_workers.prompts import PromptStream, RowOrder
from services.contracts.errors import CheckpointError, TriremeError
from services.contracts.records import ScoredGroup, WeightedDemonstrations
from services.control import run_state
from services.control.admission import AdmissionRule
from services.control.alarms import Alarm, Alarms
from services.control.catalogue import ALARM_FAMILY, SUITE_FAMILY
from services.control.config import RunConfig, TrainConfig
from services.control.controller import Controller, Step
from services.control.demonstration_mix import DemonstrationMix
from services.control.evaluate_config import MAIN
from services.control.event_log import EventLog
from services.control.filter_metrics import filter_metrics
from services.control.learner_group import LearnerGroup
from services.control.ledger import Ledger
from services.control.metrics import SampleLog, read_metrics
from services.control.open_work import OpenWork, under_rule
from services.control.parts import Parts
from services.control.preflight import RunInputs
from services.control.progress import Progress
from services.control.recorder import Recorder, is_due
from services.control.regression_gate import Comparison, breaches, compare
from services.control.reward_signals import reward_signals
from services.control.run_events import RunEvents
from services.control.run_machine import RunMachine
from services.control.run_state import RunState
from services.control.saved_groups import read_groups
from services.control.step_metrics import RunTotals, step_metrics
from services.control.step_tokens import locate_steps
from services.control.suites import HeldOut, comparable, evaluate_all, fingerprints


@dataclass(frozen=True, kw_only=True, slots=True)
class RunContext:
    """What stays the same from the first session of a run to its last.

    Attributes:
        now: seconds on the clock that steps are timed by.
    """

    config: RunConfig
    inputs: RunInputs
    progress: Progress
    totals: RunTotals
    log: EventLog
    events: RunEvents
    now: Callable[[], float] = time.monotonic


class Session:
    """One learner, from the state that it has now.

    Args:
        checkpoint: folder that the state came from; None at the very beginning.
        state: the state of the run at that moment.
        stack: closes what is open for writing.

    Attributes:
        machine: the run's decisions.
        controller: the loop.
        state: of the last whole step.
        last_step: None before there is one.
        reward_wait: share of that step in which scoring waited for a reward service that did not answer.
        raised: the alarms of that step, or of an evaluation made up for before the first.
        held_out: the newest evaluations.
        comparisons: those against the ones before the first step.
        saved_step: step of the newest checkpoint.
    """

    def __init__(
        self,
        run: RunContext,
        parts: Parts,
        learner: LearnerGroup,
        *,
        checkpoint: Path | None,
        state: RunState,
        stack: ExitStack,
    ) -> None:
        config = run.config
        self._run = run
        self._parts = parts
        self._learner = learner
        self._saving = asyncio.Lock()
        self._prompts = _prompt_stream(config, run.inputs, state.prompt_position)
        self._recorder = stack.enter_context(
            Recorder(config.run, config.train, config.metrics, progress=run.progress, first_step=state.step)
        )
        self._samples = stack.enter_context(
            SampleLog(config.run.dir, samples_per_step=config.metrics.samples_per_step, resume_step=state.step)
        )
        self._ledger, self.machine = _books(run, state, _open_work(checkpoint, state, self._prompts), self._prompts)
        self.controller = Controller(
            prompts=self._prompts,
            rollouts=parts.rollouts,
            rewards=parts.rewards,
            learner=learner,
            machine=self.machine,
            note=run.events.note,
            sampling=config.rollout.to_sampling(seed=config.run.seed),
            greedy_baseline=config.learner.parts.needs_greedy_baseline,
            max_failed_prompts=config.train.max_failed_prompts,
            prepare=_preparation(run),
            demonstrations=_demonstrations_beside(run),
            now=run.now,
        )
        rows = read_metrics(config.run.dir)
        self._newest_row = rows[-1] if rows else None
        self._alarms = Alarms(config.alarms, [state.evaluation_before, *(row.metrics for row in rows)])
        self.state = comparable(state, config, run.inputs)
        self.last_step: Step | None = None
        self.reward_wait = 0.0
        self.raised: Sequence[Alarm] = ()
        self.held_out = HeldOut(evaluations={}, scores={})
        self.comparisons: Sequence[Comparison] = ()

    @property
    def saved_step(self) -> int:
        return self._recorder.saved_step

    @property
    def num_trained(self) -> int:
        """Prompts trained since the run began."""
        return self._ledger.counts["trained"]

    async def steps(self) -> AsyncGenerator[Step, None]:
        """Every step that is left, each recorded, and checkpointed when one is due, before it is yielded."""
        async with aclosing(self.controller.steps(self._run.config.train.num_steps)) as steps:
            async for step in steps:
                await self._record(step)
                yield step

    @property
    def regressions(self) -> Sequence[Comparison]:
        """The evaluations that fell so far that the run must stop."""
        return breaches(self.comparisons, "stop")

    async def evaluate(self, when: str) -> HeldOut:
        """Every held-out evaluation of the newest weights; none where the run has no held-out prompts."""
        if not self._run.inputs.held_out:
            return self.held_out
        await self.controller.synced()
        self.held_out = held_out = await evaluate_all(self._run.config, self._run.inputs, self._parts)
        self._run.progress.message(f"held-out accuracy {when}: {held_out}")
        self.comparisons = compare(self._run.config.evaluate.by_name, self.state.scores_before, held_out.scores)
        for one in (*breaches(self.comparisons, "warn"), *self.regressions):
            self._run.progress.message(f"regression {when}: {one}")
            self._run.events.note("regression", step=self.state.step, evaluation=one.name, text=str(one))
        return held_out

    async def evaluate_before(self) -> HeldOut | None:
        """Every evaluation of the weights that the run began with; None where it began earlier."""
        if self.state.step > 0:
            self._tell_of_idle_gates()
            await self._make_up_for_evaluation()
            return None
        before = await self._evaluate_apart("before training")
        self.state = replace(
            self.state,
            accuracy_before=before.main.accuracy if before.main else None,
            evaluation_before=before.metrics(),
            scores_before=before.scores,
            scores_of=fingerprints(self._run.config, self._run.inputs),
        )
        if before.evaluations:
            self._alarms.check(before.metrics())
        return before

    @property
    def _evaluation_is_due(self) -> bool:
        """Whether one follows the last whole step; the one after the very last is made apart."""
        config = self._run.config
        return is_due(self.state.step, config.evaluate.every) and self.state.step < config.train.num_steps

    async def _make_up_for_evaluation(self) -> None:
        """Make the evaluation that failed after the step from which the run goes on."""
        row, families = self._newest_row, (f"{MAIN}/", f"{SUITE_FAMILY}/")
        if row is None or row.step != self.state.step or any(name.startswith(families) for name in row.metrics):
            return
        if self._evaluation_is_due:
            held_out = await self._evaluate_apart(f"after step {self.state.step}, where it failed before")
            if held_out.evaluations:
                self.raised = self._alarms.check(held_out.metrics())
                self._tell(self.raised)

    def _tell_of_idle_gates(self) -> None:
        settings = self._run.config.evaluate.by_name
        idle = [name for name, own in settings.items() if own.gate and name not in self.state.scores_before]
        if idle:
            self._run.progress.message(
                f"no gate is checked on {', '.join(idle)}, which was not measured before the run's first step, or on "
                "other prompts or in another way"
            )

    async def evaluate_after(self) -> HeldOut:
        """Every evaluation of the weights after the last step."""
        return await self._evaluate_apart("after training")

    async def _evaluate_apart(self, when: str) -> HeldOut:
        """Evaluations that belong to no step's metrics."""
        held_out = await self.evaluate(when)
        if held_out.evaluations:
            self._run.events.note("evaluated", step=self.state.step, metrics=dict(held_out.metrics()))
        return held_out

    async def export(self, folder: Path) -> None:
        """Write the policy in Hugging Face format."""
        await self._learner.export(folder)

    async def checkpoint(self) -> Path:
        """Commit the last whole step, if there is one, with what is under way now.

        The caller keeps the learner from going on.

        Raises:
            CheckpointError: the disk refuses.
        """
        async with self._saving:
            open_work = self.machine.open_work
            state = self._snapshot(open_work)
            folder = await self._recorder.checkpoint(state, self._learner, waiting=open_work.waiting)
            if state.step > 0:  # Before, nothing was committed.
                self._run.events.note("checkpoint", step=state.step)
            return folder

    async def _record(self, step: Step) -> None:
        config = self._run.config
        self.last_step = step
        self.state = replace(self.state, step=step.number)
        self._run.totals.add(step)
        self._samples.record(step.number, step.groups)
        scoring = self._parts.rewards.tally.lap()
        self.reward_wait = scoring["reward_service/waited_seconds"] / step.seconds["step"]
        metrics = step_metrics(step, num_workers=self._parts.fleet.num_serving) | scoring
        metrics |= reward_signals(step.sampled, maximum=self._parts.rewards.description.maximum)
        if config.train.dynamic_sampling or step.filtered:
            metrics |= filter_metrics(step.groups, step.filtered, config.evaluate)
        if self._evaluation_is_due:
            try:
                metrics |= (await self.evaluate(f"after step {step.number}")).metrics()
            except TriremeError:
                # The step was trained and will be in a checkpoint, so its row must be there, too.
                self._recorder.record(step.number, metrics)
                raise
        self.raised = self._alarms.check(metrics)
        metrics |= {f"{ALARM_FAMILY}/{alarm.name}": alarm.reading for alarm in self.raised}
        self._recorder.record(step.number, metrics)
        self._tell(self.raised)
        holds = any(alarm.action == "pause" for alarm in self.raised)
        if holds or is_due(step.number, config.train.checkpoint_every):
            await self._checkpoint_or_go_on()

    def _tell(self, alarms: Sequence[Alarm]) -> None:
        for alarm in alarms:
            self._run.events.note("alarm", step=self.state.step, alarm=alarm.name, action=alarm.action, text=alarm.text)
            self._run.progress.message(f"alarm after step {self.state.step}: {alarm.text}")

    async def _checkpoint_or_go_on(self) -> None:
        try:
            await self.checkpoint()
        except CheckpointError as error:
            self._recorder.go_on_without(error)

    def _snapshot(self, open_work: OpenWork) -> RunState:
        self.state = replace(
            self.state,
            step=self.machine.trained_steps,
            prompt_position=self._prompts.position,
            running=open_work.running,
            event_counts=dict(self._ledger.counts),
            num_events=self._run.log.num_events,
            seconds=self._run.totals.seconds,
            num_samples=self._run.totals.num_samples,
        )
        return self.state


def check_open_work(config: RunConfig, inputs: RunInputs, checkpoint: Path | None, state: RunState) -> None:
    """Raise `UserError` where the settings leave no room for what the checkpoint has under way."""
    prompts = _prompt_stream(config, inputs, state.prompt_position)
    under_rule(_open_work(checkpoint, state, prompts), _admission_rule(config.train), step=state.step)


def _preparation(run: RunContext) -> Callable[[ScoredGroup], ScoredGroup]:
    """What the learner needs of a scored group beyond what it is."""
    if run.config.learner.uses_steps:
        return partial(locate_steps, decode=run.inputs.decode)
    return lambda scored: scored


def _demonstrations_beside(run: RunContext) -> Callable[[int], WeightedDemonstrations | None]:
    """What the learner learns beside its rollouts, by the number of steps before."""
    config = run.config.demonstrations
    if config is None:
        return lambda step: None
    return DemonstrationMix(
        config, run.inputs.demonstrations, seed=run.config.run.seed, num_steps=run.config.train.num_steps
    ).at


def _prompt_stream(config: RunConfig, inputs: RunInputs, position: int) -> PromptStream:
    prompts = inputs.prompts.prompts
    order = RowOrder(len(prompts), seed=config.run.seed, shuffle=config.data.shuffle, position=position)
    return PromptStream(prompts, order)


def _open_work(checkpoint: Path | None, state: RunState, prompts: PromptStream) -> OpenWork:
    if checkpoint is None:
        return OpenWork()
    waiting = read_groups(checkpoint / run_state.WAITING_FILE, prompts.at)
    return OpenWork(waiting=waiting, running=state.running)


def _admission_rule(train: TrainConfig) -> AdmissionRule:
    return AdmissionRule(
        prompts_per_step=train.prompts_per_step, max_staleness=train.max_staleness, num_steps=train.num_steps
    )


def _books(run: RunContext, state: RunState, open_work: OpenWork, prompts: PromptStream) -> tuple[Ledger, RunMachine]:
    train = run.config.train
    open_prompts = {prompts.at(position).id: "admitted" for position in open_work.running}
    open_prompts |= {waiting.group.group.prompt.id: "accepted" for waiting in open_work.waiting}
    ledger = Ledger(run.events.note, counts=state.event_counts, open_prompts=open_prompts)
    run.events.is_open = ledger.open_prompts.__contains__
    machine = RunMachine(
        _admission_rule(train),
        ledger,
        trained_steps=state.step,
        open_work=open_work,
        max_filtered_per_step=train.most_filtered,
    )
    return ledger, machine
