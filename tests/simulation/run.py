"""Drives the real control plane through one scenario, process after process, and checks what it left behind.

It must not know how a fault happens; the simulated parts do. Invariants: a run ends in `finished`, or in a typed error
that its scenario allows; once the faults are over it finishes; its ledger keeps every promise.
"""

import asyncio
import random
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from rollout_workers.fleet import Fleet
from rollout_workers.pool import RolloutPool
from rollout_workers.prompts import PromptSet
from services.contracts.errors import CheckpointError, DeadlineExceeded, TriremeError, UserError
from services.control import run_folder, run_state
from services.control.config import RunConfig
from services.control.event_log import EVENTS_FILE, EventLog
from services.control.interrupts import StopRequest
from services.control.ledger_events import Event, parse_event
from services.control.operator import Operator
from services.control.parts import TrainingParts
from services.control.preflight import RunInputs
from services.control.progress import Progress
from services.control.recorder import restore_point
from services.control.run_events import RunEvents
from services.control.session import RunContext, check_open_work
from services.control.step_metrics import RunTotals
from services.control.training import Outcome, Sessions
from services.control.verification import verify_run
from tests.fakes import make_prompt
from tests.simulation.filtering import check_filtering
from tests.simulation.learnt import check_learnt
from tests.simulation.parts import SimulatedLearner, SimulatedRewards
from tests.simulation.scenario import Order, Scenario, make_scenario
from tests.simulation.virtual_time import Deadlock, Killed, VirtualTimeLoop
from tests.simulation.workers import SimulatedLauncher

SAMPLES_PER_PROMPT = 2
MOST_S = 7200.0
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(kw_only=True)
class Result:
    """What became of a scenario: how each process ended, the faults that happened, the ledger, and what is wrong."""

    scenario: Scenario
    endings: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    events: list[Event] = field(default_factory=list)
    trained_tokens: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


def simulate(seed: int) -> Result:
    """Run the scenario of this seed, and compare a synchronous one with its undisturbed twin."""
    result = run_scenario(make_scenario(seed))
    scenario = result.scenario
    if scenario.max_staleness == 0 and result.endings[-1] == "finished" and not result.wrong:
        calm = Scenario(
            seed=scenario.seed,
            max_staleness=0,
            prompts_per_step=scenario.prompts_per_step,
            num_workers=1,
            max_workers=1,
            num_steps=scenario.num_steps,
            num_prompts=scenario.num_prompts,
            max_groups_per_worker=scenario.max_groups_per_worker,
            checkpoint_every=0,
            unscorable=scenario.unscorable,
            flat=scenario.flat,
            max_filtered_per_step=scenario.max_filtered_per_step,
            greedy_baseline=scenario.greedy_baseline,
        )
        twin = run_scenario(calm)
        result.wrong += twin.wrong
        if twin.trained_tokens != result.trained_tokens:
            result.wrong.append("the tokens trained on are not those of an undisturbed run with one worker")
    return result


def run_scenario(scenario: Scenario) -> Result:
    """One run, up to its end or to an error that no resume mends."""
    result = Result(scenario=scenario)
    with tempfile.TemporaryDirectory(dir=_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None) as folder:
        _SimulatedRun(scenario, Path(folder) / "run", result).go()
    return result


class _SimulatedRun:
    """The processes of one run, one after the other."""

    def __init__(self, scenario: Scenario, folder: Path, result: Result) -> None:
        self._scenario = scenario
        self._folder = folder
        self._result = result
        self._now = 0.0
        self._num_processes = 0

    def go(self) -> None:
        """Start it, and resume it as often as it ends early; the last process lives in peace."""
        while not self._result.wrong and "finished" not in self._result.endings:
            in_peace = self._num_processes == self._scenario.num_processes
            ending = self._process(_in_peace(self._scenario) if in_peace else self._scenario, resume=self._has_run())
            self._result.endings.append(ending)
            if in_peace and ending != "finished":
                self._result.wrong.append(f"a process to which nothing happened did not finish: {ending}")
            self._check()
            if not self._result.wrong and not self._has_run():
                shutil.rmtree(self._folder)  # Nothing can be resumed: the run starts anew.
        for change in ("more", "fewer"):
            told = sum(f"workers, one {change}" in message for message in self._result.messages)
            self._result.faults[f"autoscaler: one {change}"] += told

    def _check(self) -> None:
        """The promises of what the process left, and those that only the learner can show."""
        result = self._result
        result.events = [parse_event(line) for line in (self._folder / EVENTS_FILE).read_bytes().splitlines()]
        if result.wrong:
            return
        report = verify_run(self._folder)
        violations = report.violations
        if result.endings[-1] == "killed":
            violations.pop("I7", None)  # The next process resumes, if anything was committed.
        result.wrong += [f"{invariant}: {facts}" for invariant, facts in violations.items()]
        result.wrong += check_filtering(result.events, self._scenario.max_filtered_per_step)
        totals = report.totals  # Of all processes so far.
        result.faults |= Counter(
            {
                "late reply fenced": totals.fenced,
                "attempt requeued": totals.requeued,
                "prompt filtered": totals.filtered,
            }
        )
        if result.endings[-1] == "finished":
            self._result.trained_tokens, wrong = check_learnt(self._folder, self._scenario, SAMPLES_PER_PROMPT)
            result.wrong += wrong

    def _has_run(self) -> bool:
        return bool(run_state.committed(self._folder / run_folder.CHECKPOINTS))

    def _process(self, scenario: Scenario, *, resume: bool) -> str:
        """One process of the run; returns how it ended."""
        loop = VirtualTimeLoop(now=self._now, most_s=MOST_S)
        number, self._num_processes = self._num_processes, self._num_processes + 1
        kill = scenario.kills[number] if number < len(scenario.kills) else None
        if kill is not None:
            loop.kill_at = (self._now + kill[0], kill[1])
        with _MortalLog(self._folder, resume=resume) as log:
            process = _Process(scenario, self._folder, log, self._result, number=number, resume=resume)
            try:
                outcome = loop.run(process.run(), on_kill=process.die)
            except Killed:
                self._result.faults["controller killed"] += 1
                return "killed"
            except TriremeError as error:
                log.note("run_ended", how="failed", error=type(error).__name__, exit_code=error.exit_code)
                self._result.wrong += _not_allowed(scenario, error)
                return f"{type(error).__name__}: {error}"
            except (AssertionError, Deadlock) as error:
                self._result.wrong.append("".join(traceback.format_exception(error)))
                return f"{type(error).__name__}: {error}"
            finally:
                self._now = loop.time()
                self._result.wrong += [] if process.is_dead else loop.faults
            how = "interrupted" if outcome.interrupted else "drained" if outcome.drained else "finished"
            log.note("run_ended", how=how, error=None, exit_code=130 if outcome.interrupted else 0)
            return how


class _Process:
    """One process: what `train` does, on simulated parts."""

    def __init__(
        self, scenario: Scenario, folder: Path, log: "_MortalLog", result: Result, *, number: int, resume: bool
    ) -> None:
        self.is_dead = False
        self._scenario = scenario
        self._log = log
        self._result = result
        self._seed = f"{scenario.seed}/process {number}"
        self._orders = scenario.orders[number] if number < len(scenario.orders) else ()
        self._folder = folder
        self._resume = resume

    def die(self) -> None:
        """Whatever still runs writes nothing more."""
        self.is_dead = self._log.is_dead = True

    async def run(self) -> Outcome:
        config = _config(self._scenario, self._folder)
        progress = cast(Progress, _Messages(self._result.messages))
        checkpoint, state = restore_point(self._folder, progress, resume=self._resume)
        inputs = RunInputs(prompts=_prompts(self._scenario), max_length=100, tokenizer=None)
        check_open_work(config, inputs, checkpoint, state)
        run = RunContext(
            config=config,
            inputs=inputs,
            progress=progress,
            totals=RunTotals(started=time.monotonic(), seconds_before=state.seconds, num_samples=state.num_samples),
            log=self._log,
            events=RunEvents(self._log.note),
            now=asyncio.get_running_loop().time,
        )
        sessions = Sessions(run, checkpoint, state)
        sessions.note_start()
        pool = RolloutPool(
            max_outstanding=config.rollout.groups_at_once,
            max_attempts=config.rollout.max_losses_per_prompt,
            watcher=run.events,
        )
        launcher = SimulatedLauncher(self._scenario, config.rollout, seed=self._seed, note=self._happened)
        fleet = Fleet(pool, launcher, config.rollout, watcher=run.events)
        stop = StopRequest()
        operator = Operator(config, fleet, run.events.note)
        with ExitStack() as stack:
            try:
                await fleet.start(config.rollout.num_workers)
                obeying = asyncio.create_task(self._obey(operator, stop), name="operator")
                stack.callback(obeying.cancel)
                return await sessions.go_through(self._parts(pool, fleet), operator, stop)
            finally:
                await fleet.stop()

    def _parts(self, pool: RolloutPool, fleet: Fleet) -> TrainingParts:
        draw = random.Random(f"{self._seed}/learner")
        now = asyncio.get_running_loop().time()

        async def restart(lost: SimulatedLearner) -> SimulatedLearner:
            await asyncio.sleep(draw.uniform(1.0, 20.0))
            return SimulatedLearner(self._scenario, draw, self._happened, generation=lost.generation + 1)

        rewards = SimulatedRewards(self._scenario, random.Random(f"{self._seed}/reward"), self._happened, started=now)
        parts: Any = TrainingParts  # Any: the simulated parts have what a session uses of the real ones
        return cast(
            TrainingParts,
            parts(
                rollouts=pool,
                fleet=fleet,
                rewards=rewards,
                learner=SimulatedLearner(self._scenario, draw, self._happened),
                restart_learner=restart,
            ),
        )

    async def _obey(self, operator: Operator, stop: StopRequest) -> None:
        started = asyncio.get_running_loop().time()
        for order in self._orders:
            await asyncio.sleep(max(0.0, started + order.after_s - asyncio.get_running_loop().time()))
            self._happened(f"operator: {order.command}")
            with suppress(UserError, CheckpointError, DeadlineExceeded):
                await _carry_out(order, operator, stop)

    def _happened(self, fault: str) -> None:
        if not self.is_dead:
            self._result.faults[fault] += 1


async def _carry_out(order: Order, operator: Operator, stop: StopRequest) -> None:
    if order.command == "scale":
        await operator.scale(order.value)
    elif order.command == "interrupt":
        stop.requested = stop.finishes_step
    elif order.command == "checkpoint":
        try:
            await operator.checkpoint(timeout_s=5.0)
        except TriremeError:
            return  # The operator is told; the run goes on, or ends, by itself.
    else:
        await getattr(operator, order.command)()
    operator.status()


class _MortalLog(EventLog):
    """A log to which nothing is written any more once its process was killed."""

    is_dead = False

    def note(self, event: str, **fields: Any) -> None:
        if not self.is_dead:
            super().note(event, **fields)


class _Messages:
    """A `Progress` that keeps the messages."""

    def __init__(self, messages: list[str]) -> None:
        self.message = messages.append

    def update(self, step: int, metrics: object) -> None:
        """Nobody watches."""


def _config(scenario: Scenario, folder: Path) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"dir": folder, "seed": scenario.seed},
            "model": {"path": "simulated"},
            "data": {"prompts": "simulated"},
            "reward": {"addresses": ["localhost:1"]},
            "learner": {"algorithm": "remax" if scenario.greedy_baseline else "grpo"},
            "metrics": {"sinks": (), "samples_per_step": 0},
            "autoscale": {
                "enabled": scenario.target_learner_wait > 0,
                "target_learner_wait": scenario.target_learner_wait or 0.5,
                "settle_steps": 1,
            },
            "train": {
                "num_steps": scenario.num_steps,
                "prompts_per_step": scenario.prompts_per_step,
                "max_staleness": scenario.max_staleness,
                "dynamic_sampling": scenario.max_filtered_per_step > 0,
                "max_filtered_per_step": scenario.max_filtered_per_step or None,
                "max_failed_prompts": scenario.max_failed_prompts,
                "max_learner_restarts": scenario.max_learner_restarts,
                "checkpoint_every": scenario.checkpoint_every,
            },
            "rollout": {
                "num_workers": scenario.num_workers,
                "max_workers": scenario.max_workers,
                "samples_per_prompt": SAMPLES_PER_PROMPT,
                "max_completion_tokens": 8,
                "max_groups_per_worker": scenario.max_groups_per_worker,
                "sample_timeout_s": scenario.sample_timeout_s,
                "sync_timeout_s": 40.0,
                "drain_timeout_s": 2.0,
                "max_restarts": scenario.max_restarts,
                "max_losses_per_prompt": scenario.max_losses_per_prompt,
            },
        }
    )


def _prompts(scenario: Scenario) -> PromptSet:
    return PromptSet(prompts=tuple(make_prompt(row) for row in range(scenario.num_prompts)))


def _in_peace(scenario: Scenario) -> Scenario:
    """The same run, to which nothing happens."""
    calm = Scenario(
        **{name: getattr(scenario, name) for name in _SETTINGS},
        unscorable=scenario.unscorable,
        flat=scenario.flat,
    )
    return replace(calm, max_failed_prompts=1000)


_SETTINGS = (
    "seed",
    "max_staleness",
    "prompts_per_step",
    "num_workers",
    "max_workers",
    "num_steps",
    "num_prompts",
    "max_groups_per_worker",
    "checkpoint_every",
    "max_filtered_per_step",
    "target_learner_wait",
    "greedy_baseline",
)


def _not_allowed(scenario: Scenario, error: TriremeError) -> Sequence[str]:
    """What is wrong with this end; nothing where the scenario has a fault that may end a run so."""
    allowed = {
        "CanaryMismatch": scenario.broken_memory > 0,
        "ChecksumMismatch": scenario.torn_weights > 0,
        "WorkerLost": min(scenario.max_restarts, scenario.max_losses_per_prompt) < 100
        or scenario.no_launch > 0
        or scenario.torn_weights > 0,
        "UserError": scenario.no_launch > 0,
        "DeadlineExceeded": scenario.sample_timeout_s < 100,
        "SampleNotScorable": scenario.unscorable > 0 and scenario.max_failed_prompts < 1000,
        "RewardUnavailable": any(end - start > 100 for start, end in scenario.outages),
        "LearnerLost": scenario.max_learner_restarts < 1000,
        "NonFiniteStep": scenario.learner_fails > 0,
        "CheckpointError": scenario.disk_full > 0,
    }
    return [] if allowed.get(type(error).__name__) else [f"{type(error).__name__} was not to be expected: {error}"]
