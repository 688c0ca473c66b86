"""A reinforcement-learning run from its folder to its summary: what surrounds the loop.

It must not know how a step is made; `controller` does. Invariants: a run that ends early leaves a checkpoint of its
last whole step, unless it crashed or the learner itself failed; whatever was started is ended.
"""

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from pathlib import Path

from rollout_workers.prompts import PromptStream, RowOrder
from services.contracts.errors import TriremeError
from services.contracts.records import Json
from services.control import run_folder
from services.control.admission import AdmissionRule
from services.control.config import RunConfig
from services.control.controller import Controller, Step
from services.control.evaluation import Evaluation, evaluate
from services.control.interrupts import StopRequest, catch_interrupts
from services.control.learner_group import LearnerGroup
from services.control.ledger import Ledger
from services.control.memory import MemoryWatch
from services.control.metrics import SampleLog
from services.control.parts import Parts, start_parts
from services.control.preflight import RunInputs
from services.control.progress import Progress, open_progress
from services.control.recorder import Recorder, is_due, restore_point
from services.control.run_state import RunState
from services.control.step_metrics import RunTotals, step_metrics
from services.control.versions import package_versions


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run ended: its summary, the evaluations around it, and whether it was interrupted."""

    summary: Mapping[str, Json]
    before: Evaluation | None
    after: Evaluation | None
    interrupted: bool


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
        memory = stack.enter_context(MemoryWatch())
        progress = stack.enter_context(open_progress(config.train.num_steps, title=config.run.name))
        checkpoint, state = restore_point(config.run.dir, progress, resume=resume)
        run = _Run(config, inputs, progress, state, started, stack)
        try:
            outcome = asyncio.run(run.run(checkpoint))
        except asyncio.CancelledError as error:
            raise KeyboardInterrupt from error
    summary = {**outcome.summary, "peak_memory_bytes": memory.peak_bytes}
    run_folder.write_summary(config.run.dir, summary)
    return replace(outcome, summary=summary)


class _Run:
    """One run's loop with everything that is written around it; `state` is that of the last whole step."""

    def __init__(
        self,
        config: RunConfig,
        inputs: RunInputs,
        progress: Progress,
        state: RunState,
        started: float,
        stack: ExitStack,
    ) -> None:
        self._config = config
        self._inputs = inputs
        self._progress = progress
        self._state = state
        self._totals = RunTotals(started=started, seconds_before=state.seconds)
        self._sampling = config.rollout.to_sampling(seed=config.run.seed)
        self._prompts = PromptStream(
            inputs.prompts.prompts,
            RowOrder(
                len(inputs.prompts.prompts),
                seed=config.run.seed,
                shuffle=config.data.shuffle,
                position=state.prompt_position,
            ),
        )
        self._recorder = stack.enter_context(
            Recorder(config.run, config.train, config.metrics, progress=progress, first_step=state.step)
        )
        self._samples = stack.enter_context(
            SampleLog(config.run.dir, samples_per_step=config.metrics.samples_per_step, resume_step=state.step)
        )
        self._ledger = stack.enter_context(Ledger(config.run.dir, counts=state.event_counts))

    async def run(self, checkpoint: Path | None) -> Outcome:
        with catch_interrupts(self._progress.message) as stop:
            self._progress.message("starting reward service, learner and rollout workers")
            async with start_parts(self._config) as parts:
                assert parts.learner is not None
                if checkpoint is not None:
                    await parts.learner.load(checkpoint)
                    self._ledger.note("resumed", step=self._state.step)
                controller = self._controller(parts, parts.learner)
                try:
                    return await self._train(controller, parts, parts.learner, stop)
                except TriremeError:
                    if controller.trained_steps == self._state.step:
                        await self._recorder.checkpoint(self._state, parts.learner)
                    raise

    async def _train(self, controller: Controller, parts: Parts, learner: LearnerGroup, stop: StopRequest) -> Outcome:
        await controller.publish(self._state.step)
        before = None
        if self._state.step == 0:
            before = await self._evaluate(parts, "before training")
            self._state = replace(self._state, accuracy_before=before.accuracy if before else None)
        stop.finishes_step = True
        async with aclosing(controller.steps(self._config.train.num_steps)) as steps:
            async for step in steps:
                await self._after_step(step, parts, learner)
                if stop.requested:
                    break
        await self._recorder.checkpoint(self._state, learner)
        if stop.requested:
            return Outcome(summary=self._summary(None), before=before, after=None, interrupted=True)
        after = await self._evaluate(parts, "after training")
        await learner.export(self._config.run.dir / run_folder.EXPORT)
        return Outcome(summary=self._summary(after), before=before, after=after, interrupted=False)

    async def _after_step(self, step: Step, parts: Parts, learner: LearnerGroup) -> None:
        self._totals.add(step)
        self._samples.record(step.number, step.groups)
        metrics = step_metrics(step)
        if is_due(step.number, self._config.evaluate.every) and step.number < self._config.train.num_steps:
            evaluation = await self._evaluate(parts, f"after step {step.number}")
            metrics |= evaluation.metrics() if evaluation else {}
        self._state = RunState(
            step=step.number,
            prompt_position=self._prompts.position,
            event_counts=dict(self._ledger.counts),
            accuracy_before=self._state.accuracy_before,
            seconds=self._totals.seconds,
        )
        await self._recorder.record(self._state, metrics, learner)

    async def _evaluate(self, parts: Parts, when: str) -> Evaluation | None:
        if self._inputs.evaluation_prompts is None:
            return None
        evaluation = await evaluate(
            self._inputs.evaluation_prompts.prompts,
            rollouts=parts.rollouts,
            rewards=parts.rewards,
            sampling=self._sampling,
            config=self._config.evaluate,
        )
        self._progress.message(f"held-out accuracy {when}: {evaluation.accuracy:.1%}")
        return evaluation

    def _controller(self, parts: Parts, learner: LearnerGroup) -> Controller:
        train = self._config.train
        return Controller(
            prompts=self._prompts,
            rollouts=parts.rollouts,
            rewards=parts.rewards,
            learner=learner,
            ledger=self._ledger,
            admission=AdmissionRule(prompts_per_step=train.prompts_per_step, max_staleness=train.max_staleness),
            sampling=self._sampling,
            step=self._state.step,
            max_failed_prompts=train.max_failed_prompts,
        )

    def _summary(self, after: Evaluation | None) -> dict[str, Json]:
        return {
            "accuracy_before": self._state.accuracy_before,
            "accuracy_after": None if after is None else after.accuracy,
            "num_steps": self._state.step,
            **self._totals.summary(),
            "prompts": dict(self._ledger.counts),
            "versions": dict(package_versions()),
        }
