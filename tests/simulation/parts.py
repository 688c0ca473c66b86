"""Simulated learner and rewards.

They must not know the loop. Invariants: the learner's whole state is what it trained on, in order; a lost learner never
answers again; a prompt that cannot be scored is the same one in every run of the seed.
"""

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from services.contracts.errors import LearnerLost, NonFiniteStep, RewardUnavailable
from services.contracts.records import (
    Failure,
    FailureCode,
    LearnerReport,
    Publication,
    Reward,
    RewardDescription,
    RewardSample,
    ScoredGroup,
    WeightedDemonstrations,
)
from services.transport.reward_tally import RewardTally
from tests.fakes import FakeLearner
from tests.simulation.scenario import Scenario
from tests.simulation.workers import TORN, Note

REWARD_BUDGET_S = 100.0


class SimulatedLearner(FakeLearner):
    """Implements what a session needs of a `LearnerGroup`.

    Attributes:
        prompts: ids of the prompts trained, in order.
    """

    def __init__(self, scenario: Scenario, draw: random.Random, note: Note, *, generation: int = 0) -> None:
        super().__init__()
        self.generation = generation
        self.prompts: list[str] = []
        self._scenario = scenario
        self._draw = draw
        self._note = note
        self._is_lost = False
        self._is_busy = False

    @property
    def num_steps(self) -> int:
        return len(self.prompts) // self._scenario.prompts_per_step

    async def step(
        self, groups: Sequence[ScoredGroup], demonstrations: WeightedDemonstrations | None = None
    ) -> LearnerReport:
        await self._work("step", self._scenario.step_s * self._draw.uniform(0.5, 1.5))
        if self._draw.random() < self._scenario.learner_fails:
            self._note("learner failed in a step")
            raise NonFiniteStep("three steps in a row had a loss of NaN; lower learner.lr")
        oldest = min(group.group.lowest_policy_version for group in groups)
        assert 0 <= self.num_steps - oldest <= self._scenario.max_staleness, (
            f"step {self.num_steps} was given a token of version {oldest}"
        )
        assert all((group.baseline is not None) == self._scenario.greedy_baseline for group in groups)
        self.prompts.extend(group.group.prompt.id for group in groups)
        return await super().step(groups, demonstrations)

    async def publish(self, version: int) -> Publication:
        assert version == self.num_steps, f"a learner after {self.num_steps} steps was to publish version {version}"
        await self._work("publish", 0.1)
        publication = await super().publish(version)
        manifest = replace(publication.manifest, generation=self.generation)
        if self._scenario.torn_weights and self._draw.random() < self._scenario.torn_weights:
            self._note("weights torn for all workers")
            manifest = replace(manifest, checksums=(TORN,))
        return replace(publication, manifest=manifest)

    async def save(self, folder: Path) -> None:
        await self._work("save", self._draw.choice((0.1, 2.0)))
        if self._draw.random() < self._scenario.disk_full:
            self._note("disk full")
            raise OSError(28, "No space left on device")
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({"tokens": self.trained_tokens, "prompts": self.prompts}))

    async def load(self, folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text())
        self.trained_tokens, self.prompts = state["tokens"], state["prompts"]

    async def export(self, folder: Path) -> None:
        await self._work("export", 0.1)

    async def _work(self, what: str, seconds: float) -> None:
        """Every call is a collective: two at once would make the ranks wait for each other for ever."""
        assert not self._is_busy, f"the learner was told to {what} while it was busy"
        if not self._is_lost and self._draw.random() < self._scenario.learner_dies:
            self._note(f"learner lost in {what}")
            self._is_lost = True
        if self._is_lost:
            await asyncio.sleep(0.5)
            raise LearnerLost(f"the learner lost a rank: rank 1 died in {what}")
        self._is_busy = True
        try:
            await asyncio.sleep(seconds)
        finally:
            self._is_busy = False


class SimulatedRewards:
    """Implements `RewardScorer`: holds what it is asked through an outage, and gives up when that is too long."""

    description = RewardDescription(name="simulated")

    def __init__(self, scenario: Scenario, draw: random.Random, note: Note, *, started: float) -> None:
        self._scenario = scenario
        self._draw = draw
        self._note = note
        self._started = started
        self.tally = RewardTally()

    async def score(self, samples: Sequence[RewardSample]) -> Sequence[Reward | Failure]:
        now = asyncio.get_running_loop().time() - self._started
        away_s = max((end - now for start, end in self._scenario.outages if start <= now < end), default=0.0)
        if away_s:
            self._note("reward outage waited out" if away_s < REWARD_BUDGET_S else "reward outage too long")
        await asyncio.sleep(min(away_s, REWARD_BUDGET_S) + self._draw.uniform(0.01, 0.3))
        if away_s >= REWARD_BUDGET_S:
            raise RewardUnavailable(f"nobody answered for {REWARD_BUDGET_S:g} s")
        return [self._outcome(sample) for sample in samples]

    def _outcome(self, sample: RewardSample) -> Reward | Failure:
        prompt_id = sample.id.rsplit("/", 1)[0]
        if is_unscorable(self._scenario, prompt_id):
            self._note("sample refused by the reward")
            return Failure(code=FailureCode.INVALID_SAMPLE, message="no answer in the reference")
        if random.Random(f"{self._scenario.seed}/flat/{prompt_id}").random() < self._scenario.flat:
            return Reward(value=1.0)
        return Reward(value=float(sum(sample.token_ids)))


def is_unscorable(scenario: Scenario, prompt_id: str) -> bool:
    return random.Random(f"{scenario.seed}/{prompt_id}").random() < scenario.unscorable
