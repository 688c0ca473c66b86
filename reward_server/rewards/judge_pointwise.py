"""A language model's marks for a completion, criterion by criterion.

It must not know the endpoint or how a reply is read.
"""

import functools
from typing import Self

from pydantic import Field, field_validator, model_validator

from reward_server.function import RewardFunction, RewardOptions
from reward_server.judges.config import JudgeConfig
from reward_server.judges.judge import Judge
from reward_server.judges.judged import Judged, prompt_text, reference_text
from reward_server.judges.question import REASONS, Key, Question
from services.contracts.records import Reward, RewardSample
from services.contracts.settings import Section

TASK = """\
You are a strict and impartial judge. You are given a prompt and an answer to it{and_reference}. Give the answer a \
whole number from {lowest} (worst) to {highest} (best) on each criterion. Judge what the answer does, not what it says \
of itself."""
AND_REFERENCE = ", and a reference answer that is known to be good"
LARGEST_SCALE = 100


class Criterion(Section):
    """One thing that the answer is marked on."""

    name: str = Field(pattern=r"^[A-Za-z0-9_]+$")
    """Name of the component: letters, digits and underscores."""
    meaning: str = Field(min_length=1)
    """What a high mark means, in plain words."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Share in the value, relative to the other criteria."""


class JudgePointwise(RewardOptions):
    """Has a judge mark each completion by a rubric; the value is the weighted mean of the marks."""

    judge: JudgeConfig
    """The model that judges, and the limits of asking it."""
    criteria: tuple[Criterion, ...] = Field(min_length=1)
    """The rubric; each criterion becomes a component of the reward."""
    lowest: int = 1
    """The worst mark."""
    highest: int = 5
    """The best mark."""
    normalise: bool = True
    """Map marks to 0 (worst) … 1 (best); false leaves them on the scale."""
    reference_field: str | None = None
    """Field of the reference that the judge is shown as a good answer; null shows it none."""

    @field_validator("criteria")
    @classmethod
    def _names_differ(cls, criteria: tuple[Criterion, ...]) -> tuple[Criterion, ...]:
        names = [criterion.name for criterion in criteria]
        if len(set(names)) < len(names) or "reasons" in names:
            raise ValueError(f"the criteria are named {names}; each needs a name of its own, and none may be 'reasons'")
        return criteria

    @model_validator(mode="after")
    def _scale_is_a_scale(self) -> Self:
        if not self.lowest < self.highest <= self.lowest + LARGEST_SCALE:
            raise ValueError(
                f"marks from {self.lowest} to {self.highest} are no scale; it has 2 to {LARGEST_SCALE + 1} steps"
            )
        return self

    def reward(self) -> RewardFunction:
        judged = Judged(self.judge, self._score)
        return RewardFunction(
            judged.score,
            name="judge_pointwise",
            version="1",
            minimum=0.0 if self.normalise else self.lowest,
            maximum=1.0 if self.normalise else self.highest,
            opened=judged.opened,
            counters=judged.counters,
        )

    async def _score(self, judge: Judge, sample: RewardSample) -> Reward:
        verdict = await judge.ask(self._question(sample, explain=judge.config.explain))
        marks = {criterion.name: self._mark(int(verdict[criterion.name])) for criterion in self.criteria}
        total = sum(criterion.weight for criterion in self.criteria)
        mean = sum(criterion.weight / total * marks[criterion.name] for criterion in self.criteria)
        # Shares of a whole may add up to a little more than one.
        return Reward(value=min(max(mean, min(marks.values())), max(marks.values())), components=marks)

    def _question(self, sample: RewardSample, *, explain: bool) -> Question:
        texts = {"PROMPT": prompt_text(sample), "ANSWER": sample.completion}
        if self.reference_field is not None:
            texts["REFERENCE"] = reference_text(sample, self.reference_field)
        task = TASK.format(
            lowest=self.lowest, highest=self.highest, and_reference=AND_REFERENCE if self.reference_field else ""
        )
        return Question(task=task, texts=texts, verdict=({"reasons": REASONS} if explain else {}) | self._marks)

    @functools.cached_property
    def _marks(self) -> dict[str, Key]:
        values = tuple(range(self.lowest, self.highest + 1))
        return {criterion.name: Key(meaning=criterion.meaning, values=values) for criterion in self.criteria}

    def _mark(self, mark: int) -> float:
        return (mark - self.lowest) / (self.highest - self.lowest) if self.normalise else float(mark)
