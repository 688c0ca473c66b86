"""A run of the loop as a discrete-event simulation: 1 to 1,024 rollout workers, one learner, no process started.

Prompts are admitted by the real `AdmissionRule`, go to the worker with the fewest of them, are rewarded, and wait; the
learner takes the B with the earliest deadlines as soon as the others can still meet theirs, as `RolloutBuffer` rules.
It is pure: the same setting and seed give the same outcome. Left out: prefill, failures, a real machine's jitter.
"""

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median

from benchmarks.simulated_machine import Clock, Decoding, Engine, Node
from benchmarks.sync_schemes import SCHEMES, Network
from services.control.admission import AdmissionRule

Lengths = Callable[[random.Random], int]

_WARM_UP_STEPS = 3
"""Steps that no figure counts: the pipeline fills in them."""
_LEARNER_TICK_S = 1e-3


def geometric(mean: float, cap: int) -> Lengths:
    """Completion lengths of a model that may end after every token with the same chance."""
    return lambda draw: min(1 + int(draw.expovariate(1 / mean)), cap)


def lognormal(mean: float, cap: int, sigma: float = 1.0) -> Lengths:
    """Long-tailed completion lengths; `mean` is that before the cap."""
    location = math.log(mean) - sigma**2 / 2
    return lambda draw: max(1, min(round(draw.lognormvariate(location, sigma)), cap))


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What is simulated. Seconds are those of a process that has its core to itself.

    Attributes:
        learner_s: seconds of a learner step, whatever its tokens.
        learner_per_token_s: and for each completion token beside.
        publish_s: seconds in which the learner packs a version and announces it, and can do nothing else.
        load_s: seconds in which a worker's engine stands still for a version (load and canary).
        recompute_s: and for each running sequence, whose keys and values are computed anew.
        in_flight: load between two iterations of running sequences; else once they have ended.
        scheme: how the weights travel, a key of `SCHEMES`.
        cores_per_node: cores that the workers of a node share, one each.
        learner_shares_cores: the learner is one more process of the first node; else it has a machine of its own.
    """

    num_workers: int
    prompts_per_step: int
    samples_per_prompt: int
    max_staleness: int
    lengths: Lengths
    decoding: Decoding
    reward_s: float
    learner_s: float
    learner_per_token_s: float = 0.0
    publish_s: float
    load_s: float
    recompute_s: float = 0.0
    in_flight: bool = True
    scheme: str
    network: Network
    cores_per_node: float = math.inf
    learner_shares_cores: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What the steps after the warm-up were like.

    Attributes:
        step_s: mean seconds of a step.
        tokens_per_s: completion tokens trained a second.
        learner_share: share of the time in which the learner worked.
        sync_s: median seconds from the end of a step until every worker serves its weights.
        stall_s: median seconds from the arrival of weights at a worker until it serves them.
        staleness_mean: versions between a group's oldest token and the learner, over the groups trained.
        staleness_max: the largest of them.
    """

    step_s: float
    tokens_per_s: float
    learner_share: float
    sync_s: float
    stall_s: float
    staleness_mean: float
    staleness_max: int


@dataclass(eq=False, slots=True)
class _Group:
    number: int
    deadline: int
    worker: "_Worker"
    num_left: int
    num_tokens: int
    lowest_version: int | None = None


class _Worker:
    def __init__(self, number: int, clock: Clock, node: Node, decoding: Decoding, on_group: Callable[[_Group], None]):
        self.number = number
        self.num_outstanding = 0
        self._version = 0
        self._on_group = on_group
        self.engine: Engine[_Group] = Engine(clock, node, decoding, on_start=self._start, on_end=self._end)

    def serve(self, version: int) -> None:
        self._version = version

    def _start(self, group: _Group) -> None:
        if group.lowest_version is None:
            group.lowest_version = self._version

    def _end(self, group: _Group) -> None:
        group.num_left -= 1
        if not group.num_left:
            self._on_group(group)


def simulate(setting: Setting, *, num_steps: int = 12, seed: int = 0) -> Outcome:
    """Run `num_steps` learner steps; figures are of those after the first three."""
    assert num_steps > _WARM_UP_STEPS
    return _Simulation(setting, seed).run(num_steps)


class _Simulation:
    def __init__(self, setting: Setting, seed: int) -> None:
        self._setting = setting
        self._draw = random.Random(seed)
        self._rule = AdmissionRule(prompts_per_step=setting.prompts_per_step, max_staleness=setting.max_staleness)
        self._arrivals = SCHEMES[setting.scheme](setting.network, setting.num_workers)
        self._clock = Clock()
        per_node = setting.network.workers_per_node
        nodes = [Node(setting.cores_per_node) for _ in range(math.ceil(setting.num_workers / per_node))]
        self._workers = [
            _Worker(number, self._clock, nodes[number // per_node], setting.decoding, self._sampled)
            for number in range(setting.num_workers)
        ]
        # A learner step is a sequence of ticks: so it shares cores as every other process does.
        self._learner: Engine[int] = Engine(
            self._clock,
            nodes[0] if setting.learner_shares_cores else Node(),
            Decoding(fixed_s=_LEARNER_TICK_S, per_sequence_s=0.0),
            on_start=lambda step: None,
            on_end=self._learned,
        )
        self._least_loaded = [(0, worker.number) for worker in self._workers]
        self._buffer: list[tuple[int, _Group]] = []
        self._open: Counter[int] = Counter()
        self._waiting: Counter[int] = Counter()
        self._num_admitted = self._num_accepted = self._num_trained = self._version = 0
        self._learner_waits = True
        self._num_loading = 0
        self._ends: list[float] = []
        self._begins: list[float] = []
        self._tokens: list[int] = []
        self._sync_s: list[float] = []
        self._stall_s: list[float] = []
        self._staleness: list[int] = []

    def run(self, num_steps: int) -> Outcome:
        self._admit()
        while self._num_trained < num_steps:
            self._clock.advance()
        return self._outcome()

    def _outcome(self) -> Outcome:
        steps = [end - before for before, end in zip(self._ends, self._ends[1:], strict=False)][_WARM_UP_STEPS - 1 :]
        learning = [end - begin for begin, end in zip(self._begins, self._ends, strict=False)][_WARM_UP_STEPS:]
        staleness = self._staleness[_WARM_UP_STEPS * self._setting.prompts_per_step :]
        return Outcome(
            step_s=fmean(steps),
            tokens_per_s=sum(self._tokens[_WARM_UP_STEPS : len(self._ends)]) / sum(steps),
            learner_share=sum(learning) / sum(steps),
            sync_s=median(self._sync_s),
            stall_s=median(self._stall_s),
            staleness_mean=fmean(staleness),
            staleness_max=max(staleness),
        )

    def _admit(self) -> None:
        running = self._num_admitted - self._num_accepted
        orders: dict[int, list[tuple[int, _Group]]] = {}
        for _ in range(self._rule.room(accepted=self._num_accepted, running=running, version=self._version)):
            worker = self._pop_least_loaded()
            lengths = [self._setting.lengths(self._draw) for _ in range(self._setting.samples_per_prompt)]
            deadline = self._version + self._setting.max_staleness
            group = _Group(self._num_admitted, deadline, worker, len(lengths), sum(lengths))
            self._open[deadline] += 1
            self._num_admitted += 1
            self._count(worker, 1)
            orders.setdefault(worker.number, []).extend((length, group) for length in lengths)
        for number, ordered in orders.items():
            self._workers[number].engine.add(ordered)

    def _pop_least_loaded(self) -> _Worker:
        while True:
            num_outstanding, number = heapq.heappop(self._least_loaded)
            if self._workers[number].num_outstanding == num_outstanding:
                return self._workers[number]

    def _count(self, worker: _Worker, change: int) -> None:
        worker.num_outstanding += change
        heapq.heappush(self._least_loaded, (worker.num_outstanding, worker.number))

    def _sampled(self, group: _Group) -> None:
        self._count(group.worker, -1)
        self._clock.after(self._setting.reward_s, partial(self._accept, group))

    def _accept(self, group: _Group) -> None:
        self._num_accepted += 1
        # Deadlines rise with the numbers, so the lowest number has the earliest deadline.
        heapq.heappush(self._buffer, (group.number, group))
        self._waiting[group.deadline] += 1
        self._learn()

    def _learn(self) -> None:
        """Begin a step, if the learner is free and a batch may go."""
        if not self._learner_waits or not self._may_take():
            return
        batch = [heapq.heappop(self._buffer)[1] for _ in range(self._setting.prompts_per_step)]
        for group in batch:
            self._waiting[group.deadline] -= 1
            self._open[group.deadline] -= 1
        self._staleness.extend(self._num_trained - (group.lowest_version or 0) for group in batch)
        self._tokens.append(sum(group.num_tokens for group in batch))
        self._begins.append(self._clock.now)
        self._learner_waits = False
        seconds = self._setting.learner_s + self._setting.learner_per_token_s * self._tokens[-1]
        self._learner.add([(max(1, round(seconds / _LEARNER_TICK_S)), self._num_trained)])

    def _may_take(self) -> bool:
        """Whether, without the earliest batch, the open groups due by each deadline fit into the steps until then."""
        batch = to_take = self._setting.prompts_per_step
        if len(self._buffer) < batch:
            return False
        due = 0
        for deadline in sorted(self._open):
            taken = min(to_take, self._waiting[deadline])
            to_take -= taken
            due += self._open[deadline] - taken
            if due > max(0, deadline - self._num_trained) * batch:
                return False
        return True

    def _learned(self, step: int) -> None:
        self._num_trained = step + 1
        self._ends.append(self._clock.now)
        if not self._num_loading:
            self._publish()

    def _publish(self) -> None:
        """Send the newest weights; the version before has arrived everywhere."""
        self._num_loading = len(self._workers)
        self._clock.after(self._setting.publish_s, self._announce)

    def _announce(self) -> None:
        for worker, seconds in zip(self._workers, self._arrivals, strict=True):
            self._clock.after(seconds, partial(self._arrive, worker, self._num_trained))
        self._learner_waits = True
        self._learn()

    def _arrive(self, worker: _Worker, version: int) -> None:
        seconds = self._setting.load_s + self._setting.recompute_s * worker.engine.num_running
        served = partial(self._served, worker, version, self._clock.now)
        worker.engine.load(seconds, served, in_flight=self._setting.in_flight)

    def _served(self, worker: _Worker, version: int, arrived_at: float) -> None:
        worker.serve(version)
        self._stall_s.append(self._clock.now - arrived_at)
        self._num_loading -= 1
        if self._num_loading:
            return
        self._version = version
        self._sync_s.append(self._clock.now - self._ends[version - 1])
        if self._num_trained > version:
            self._publish()
        self._admit()
