"""Answers revised by a constitution: demonstrations for supervised training, and preferences of revision over draft.

It must not know how a judge is asked. Invariants: where the judge checks, a revision counts only if it is preferred to
its draft in both orders; what is written follows the order of the data, whatever the order in which verdicts came.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import Field

from reward_server.judges.comparison import Comparison, ComparisonConfig, compare, comparison_question
from reward_server.judges.config import JudgeConfig
from reward_server.judges.judge import Counts, Judge, open_judge, version_of
from reward_server.judges.question import Question
from services.contracts.records import Json
from services.contracts.settings import Section
from services.control.candidates import Draft, DraftsConfig, load_drafts, shown_prompt
from services.control.config import SettingsRoot
from services.control.constitution import (
    Constitution,
    Principle,
    critique_question,
    draw_principles,
    load_constitution,
    revise,
    revision_question,
)
from services.control.json_rows import write_rows
from services.control.judging import JobConfig, Result, Tell, open_job, preference
from services.control.pair_labels import PREFERENCES_FILE

DEMONSTRATIONS_FILE = "demonstrations.jsonl"


class RevisionConfig(Section):
    """How drafts are revised."""

    constitution: Path
    """YAML file with the principles."""
    rounds: int = Field(default=1, ge=1)
    """Principles drawn for each draft, one after the other; each makes a critique and, if violated, a revision."""
    check: bool = True
    """Have the judge compare the last revision with the draft, and keep only one that it prefers."""


class ReviseConfig(SettingsRoot):
    """Everything `trireme revise` can be told."""

    run: JobConfig
    drafts: DraftsConfig
    revision: RevisionConfig
    judge: JudgeConfig
    comparison: ComparisonConfig = ComparisonConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one draft.

    Attributes:
        violated: principles that it or a revision of it was found to violate.
        revision: the last revision; None where nothing was changed.
        margin: how strongly the revision is preferred to the draft; 1 where the judge did not check.
    """

    draft: Draft
    violated: Sequence[str]
    revision: str | None
    margin: float

    @property
    def better(self) -> str | None:
        """The revision, where it counts."""
        return self.revision if self.margin > 0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Revised:
    """How a revision job ended."""

    outcomes: Sequence[Outcome]
    num_failed: int
    counts: Counts


async def revise_drafts(config: ReviseConfig, *, tell: Tell) -> Revised:
    """Revise every draft that is not revised yet, and write what came of it, also of a job that has to stop.

    Raises:
        UserError: data, constitution, judge or folder cannot be used.
        TriremeError: the job stopped before its end.
    """
    drafts = load_drafts(config.drafts)
    constitution = load_constitution(config.revision.constitution)
    version = version_of(config.judge, *_kinds(config, constitution))
    check = "checked" if config.revision.check else "not checked"
    with open_job(config.run, work=f"{config.revision.rounds} rounds of {version}, {check}") as job:
        async with open_judge(config.judge) as judge:
            try:
                await job.run(drafts, _Work(config, constitution, judge), judge=judge, tell=tell)
            finally:
                done = [_outcome(draft, job.results[draft.id]) for draft in drafts if draft.id in job.results]
                _write(config.run.dir, done, version)
    return Revised(outcomes=done, num_failed=job.num_failed, counts=job.counts)


@dataclass(frozen=True, slots=True)
class _Work:
    """What is done with one draft."""

    config: ReviseConfig
    constitution: Constitution
    judge: Judge

    async def __call__(self, draft: Draft) -> dict[str, Json]:
        prompt = shown_prompt(draft.prompt)
        rounds = await revise(self.judge, prompt=prompt, draft=draft.completion, principles=self._principles(draft))
        text = rounds[-1].text
        check = None
        if self.config.revision.check and text != draft.completion:
            measure = self.config.comparison.measure
            check = await compare(self.judge, measure=measure, prompt=prompt, first=text, second=draft.completion)
        return {"rounds": [asdict(done) for done in rounds], "check": asdict(check) if check else None}

    def _principles(self, draft: Draft) -> Sequence[Principle]:
        seed = f"{self.config.run.seed}/{draft.id}"
        return draw_principles(self.constitution, self.config.revision.rounds, seed=seed)


def _kinds(config: ReviseConfig, constitution: Constitution) -> list[Question]:
    """A question of each kind that is asked."""
    kinds = [comparison_question(config.comparison.measure, "", "", "", explain=config.judge.explain)]
    for principle in constitution.principles:
        kinds += [critique_question(principle, "", ""), revision_question(principle, "", "", "")]
    return kinds


def _outcome(draft: Draft, result: Result) -> Outcome:
    rounds, check = result["rounds"], result["check"]
    text = rounds[-1]["text"]
    return Outcome(
        draft=draft,
        violated=[done["principle"] for done in rounds if done["violated"]],
        revision=None if text == draft.completion else text,
        margin=Comparison(**check).margin if check else 1.0,
    )


def _write(folder: Path, outcomes: Sequence[Outcome], judge: str) -> None:
    demonstrations = [
        {"prompt": outcome.draft.prompt, "response": outcome.better or outcome.draft.completion} for outcome in outcomes
    ]
    preferences = [
        preference(outcome.draft.prompt, outcome.better, outcome.draft.completion, outcome.margin, judge)
        for outcome in outcomes
        if outcome.better
    ]
    write_rows(folder / DEMONSTRATIONS_FILE, demonstrations)
    write_rows(folder / PREFERENCES_FILE, preferences)
