"""A reinforcement-learning run from its folder to its summary: what surrounds the sessions of its loop.

It must not know how a step is made; `controller` does. Invariants: a run that ends early leaves a checkpoint of its
last whole step, unless it crashed or the learner itself failed; a learner that was lost is started anew from the last
checkpoint while workers and rewards live on; the log says how the run ended; whatever was started is ended.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from pathlib import Path

from rollout_workers.fleet import Fleet
from services.contracts.errors import LearnerLost, RegressionBreach, RewardAlarm, TriremeError
from services.contracts.records import Json
from services.control import run_folder, run_state
from services.control.alarms import Alarm
from services.control.autoscaler import Autoscaler
from services.control.config import RunConfig
from services.control.control_server import open_control_server
from services.control.controller import Step
from services.control.evaluation import Evaluation
from services.control.event_log import EventLog
from services.control.interrupts import StopRequest, catch_interrupts
from services.control.job_log import refuse_job
from services.control.learner_group import LearnerGroup
from services.control.memory import MemoryWatch
from services.control.operator import Operator
from services.control.parts import TrainingParts, start_parts
from services.control.preflight import RunInputs
from services.control.progress import open_progress
from services.control.recorder import point_to_go_back_to, restore_point
from services.control.regression_gate import Comparison
from services.control.run_events import RunEvents
from services.control.run_state import RunState
from services.control.session import RunContext, Session, check_open_work
from services.control.step_metrics import RunTotals
from services.control.suites import HeldOut
from services.control.versions import package_versions


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run ended: its summary, the evaluations around it, and whether it stopped before its last step.

    Attributes:
        comparisons: every evaluation that was made before and after.
        breach: what fell so far that the run was to stop; its checkpoint, export and summary are written all the same.
    """

    summary: Mapping[str, Json]
    before: Evaluation | None
    after: Evaluation | None
    interrupted: bool = False
    drained: bool = False
    comparisons: Sequence[Comparison] = ()
    breach: RegressionBreach | None = None


def train(config: RunConfig, inputs: RunInputs, *, resume: bool, started: float) -> Outcome:
    """Run it all. The caller holds the run's folder.

    Args:
        resume: continue from the newest whole checkpoint.
        started: `time.monotonic()` when the command began.

    Raises:
        TriremeError: what stopped the run; its last whole step is checkpointed where that was possible.
        KeyboardInterrupt: a second Ctrl-C, or the first before there was a step to finish.
    """
    with ExitStack() as stack:
        refuse_job(config.run.dir)
        memory = stack.enter_context(MemoryWatch())
        progress = stack.enter_context(open_progress(config.train.num_steps, title=config.run.name))
        checkpoint, state = restore_point(config.run.dir, progress, resume=resume)
        check_open_work(config, inputs, checkpoint, state)
        log = stack.enter_context(EventLog(config.run.dir, resume=resume))
        run = RunContext(
            config=config,
            inputs=inputs,
            progress=progress,
            totals=RunTotals(started=started, seconds_before=state.seconds, num_samples=state.num_samples),
            log=log,
            events=RunEvents(log.note),
        )
        try:
            outcome = asyncio.run(Sessions(run, checkpoint, state).run())
        except asyncio.CancelledError as error:
            log.note("run_ended", how="interrupted", error=None, exit_code=130)
            raise KeyboardInterrupt from error
        except TriremeError as error:
            log.note("run_ended", how="failed", error=type(error).__name__, exit_code=error.exit_code)
            raise
        log.note("run_ended", **_ending(outcome))
    summary = {**outcome.summary, "peak_memory_bytes": memory.peak_bytes}
    run_folder.write_summary(config.run.dir, summary)
    return replace(outcome, summary=summary)


def _ending(outcome: Outcome) -> dict[str, Json]:
    """What the log says of how a run ended."""
    if outcome.breach is not None:
        return {"how": "failed", "error": type(outcome.breach).__name__, "exit_code": outcome.breach.exit_code}
    how = "interrupted" if outcome.interrupted else "drained" if outcome.drained else "finished"
    return {"how": how, "error": None, "exit_code": 130 if outcome.interrupted else 0}


class Sessions:
    """The sessions of one run, one after the other: a further one for each learner that was lost."""

    def __init__(self, run: RunContext, checkpoint: Path | None, state: RunState) -> None:
        self._run = run
        self._config = run.config
        self._checkpoint = checkpoint
        self._state = state
        self._num_losses = 0

    async def run(self) -> Outcome:
        with catch_interrupts(self._run.progress.message) as stop:
            self._run.progress.message("starting reward service, learner and rollout workers")
            self.note_start()
            async with start_parts(self._config, self._run.events) as parts:
                reward = parts.rewards.description
                self._run.events.note("reward_service", name=reward.name, version=reward.version)
                if parts.gold is not None:
                    gold = parts.gold.description
                    self._run.events.note("gold_service", name=gold.name, version=gold.version)
                operator = Operator(self._config, parts.fleet, self._run.events.note)
                async with open_control_server(operator, self._config.control, self._config.run.dir):
                    return await self.go_through(parts, operator, stop)

    async def go_through(self, parts: TrainingParts, operator: Operator, stop: StopRequest) -> Outcome:
        """All sessions, on parts that are ready. Raises `TriremeError`: what stopped the last one."""
        learner = parts.learner
        while True:
            try:
                return await self._session(parts, learner, operator, stop)
            except LearnerLost as error:
                learner = await self._replace(learner, parts, error)

    def note_start(self) -> None:
        """Write down that a process of the run begins, and from where."""
        train = self._config.train
        self._run.events.note(
            "run_started",
            pid=os.getpid(),
            max_staleness=train.max_staleness,
            prompts_per_step=train.prompts_per_step,
            num_steps=train.num_steps,
            samples_per_prompt=self._config.rollout.samples_per_prompt,
            seed=self._config.run.seed,
        )
        if self._checkpoint is not None:
            self._run.events.note("resumed", step=self._state.step, kept=self._state.num_events - 1)

    async def _session(
        self, parts: TrainingParts, learner: LearnerGroup, operator: Operator, stop: StopRequest
    ) -> Outcome:
        with ExitStack() as stack:
            if self._checkpoint is not None:
                await learner.load(self._checkpoint / run_state.LEARNER_FOLDER)
            session = Session(self._run, parts, learner, checkpoint=self._checkpoint, state=self._state, stack=stack)
            try:
                return await self._train(session, parts, operator, stop)
            except LearnerLost:
                raise
            except TriremeError:
                if session.controller.learner_is_sound:
                    await session.checkpoint()
                raise

    async def _train(self, session: Session, parts: TrainingParts, operator: Operator, stop: StopRequest) -> Outcome:
        await session.controller.publish(session.state.step)
        await session.controller.synced()
        before = await session.evaluate_before()
        operator.take_over(session)
        await self._heed(session.raised, operator)
        stop.on_request = session.controller.end_pause
        stop.finishes_step = True
        autoscaler = Autoscaler(self._config.autoscale, self._config.rollout)
        async with aclosing(session.steps()) as steps:
            async for step in steps:
                if stop.requested or session.regressions:
                    break
                await self._heed(session.raised, operator)
                self._autoscale(autoscaler, parts.fleet, step, reward_wait=session.reward_wait)
        await session.checkpoint()
        is_whole = session.state.step == self._config.train.num_steps
        main = before.main if before else None
        if stop.requested or not (is_whole or session.regressions):
            summary = self._summary(session, None)
            return Outcome(
                summary=summary, before=main, after=None, interrupted=stop.requested, drained=not stop.requested
            )
        after = await session.evaluate_after() if is_whole else session.held_out
        await session.export(self._config.run.dir / run_folder.EXPORT)
        return Outcome(
            summary=self._summary(session, after),
            before=main,
            after=after.main,
            comparisons=session.comparisons,
            breach=_breach(session.regressions),
        )

    async def _heed(self, alarms: Sequence[Alarm], operator: Operator) -> None:
        """Do what the alarms of a step call for. Raises `RewardAlarm` where that is to stop."""
        reasons = {action: "; ".join(a.text for a in alarms if a.action == action) for action in ("stop", "pause")}
        if reasons["stop"]:
            raise RewardAlarm(f"the run was stopped by an alarm: {reasons['stop']}; see docs/reward_hacking.md")
        if reasons["pause"] and not operator.is_draining:  # Whoever drains the run wants it to end.
            await operator.pause(reason=reasons["pause"])
            self._run.progress.message(
                f"paused; `trireme resume {self._config.run.dir}` lets the run go on, `trireme drain` ends it"
            )

    def _autoscale(self, autoscaler: Autoscaler, fleet: Fleet, step: Step, *, reward_wait: float) -> None:
        wanted = autoscaler.decide(
            learner_wait=step.learner_wait,
            reward_wait=reward_wait,
            num_workers=fleet.target,
            num_serving=fleet.num_serving,
        )
        if wanted == fleet.target:
            return
        why = "one more, as the learner waits for them" if wanted > fleet.target else "one fewer, as they idle"
        self._run.progress.message(f"autoscaler: {wanted} rollout workers, {why}")
        self._run.events.note("scaled", target=wanted, by="autoscaler")
        fleet.scale(wanted)

    async def _replace(self, learner: LearnerGroup, parts: TrainingParts, error: LearnerLost) -> LearnerGroup:
        """All ranks anew, from the newest checkpoint or, before there is one, from the beginning."""
        self._run.events.note("learner_lost", reason=str(error))
        self._num_losses += 1
        if self._num_losses > self._config.train.max_learner_restarts:
            raise error
        self._run.progress.message(f"{error}; starting all ranks anew from the last checkpoint")
        self._checkpoint, self._state = point_to_go_back_to(self._config.run.dir, self._run.progress)
        self._run.totals.num_samples = self._state.num_samples
        new = await parts.restart_learner(learner)
        self._run.events.note("learner_restarted", step=self._state.step)
        self._run.events.note("resumed", step=self._state.step, kept=self._state.num_events - 1)
        return new

    def _summary(self, session: Session, after: HeldOut | None) -> dict[str, Json]:
        main = after.main if after else None
        compared: list[Json] = [one.to_row() for one in session.comparisons] if after else []
        return {
            "accuracy_before": session.state.accuracy_before,
            "accuracy_after": main.accuracy if main else None,
            "held_out_reward_before": session.state.evaluation_before.get("evaluation/reward"),
            "held_out_reward_after": main.reward if main else None,
            "evaluations": compared,
            "num_steps": session.state.step,
            **self._run.totals.summary(),
            "prompts": dict(session.state.event_counts),
            "versions": dict(package_versions()),
        }


def _breach(regressions: Sequence[Comparison]) -> RegressionBreach | None:
    if not regressions:
        return None
    return RegressionBreach(
        f"{'; '.join(map(str, regressions))}; checkpoint, export and summary are kept; see docs/forgetting.md"
    )
