"""Preference data from a judge (RLAIF): pairs of completions in, `preferences.jsonl` for reward models and DPO out.

It must not know how a judge is asked. Invariants: only a pair on which the judge agrees with itself in both orders is
written; what is written follows the order of the data, whatever the order in which verdicts came.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from reward_server.judges.comparison import Comparison, ComparisonConfig, compare, comparison_question
from reward_server.judges.config import JudgeConfig
from reward_server.judges.judge import Counts, open_judge, version_of
from services.contracts.records import Json
from services.control.candidates import CandidatesConfig, Pair, load_pairs, shown_prompt
from services.control.config import SettingsRoot
from services.control.json_rows import write_rows
from services.control.judging import Job, JobConfig, Tell, open_job, preference
from services.control.pair_statistics import Judged, PairStatistics, pair_statistics

PREFERENCES_FILE = "preferences.jsonl"
STATISTICS_FILE = "statistics.json"


class LabelConfig(SettingsRoot):
    """Everything `trireme label-pairs` can be told."""

    run: JobConfig
    candidates: CandidatesConfig
    judge: JudgeConfig
    comparison: ComparisonConfig = ComparisonConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """How a labelling job ended."""

    statistics: PairStatistics
    num_pairs: int
    num_failed: int
    counts: Counts


async def label(config: LabelConfig, *, tell: Tell) -> Labelled:
    """Judge every pair that is not judged yet, and write the preferences, also of a job that has to stop.

    Raises:
        UserError: data, judge or folder cannot be used.
        TriremeError: the job stopped before its end.
    """
    pairs = load_pairs(config.candidates, seed=config.run.seed)
    measure = config.comparison.measure
    version = version_of(config.judge, comparison_question(measure, "", "", "", explain=config.judge.explain))
    with open_job(config.run, work=f"verdicts of {version}") as job:
        async with open_judge(config.judge) as judge:

            async def work(pair: Pair) -> dict[str, Json]:
                prompt = shown_prompt(pair.prompt)
                found = await compare(judge, measure=measure, prompt=prompt, first=pair.first, second=pair.second)
                return asdict(found)

            try:
                await job.run(pairs, work, judge=judge, tell=tell)
            finally:
                labelled = _write(config.run.dir, pairs, job, version)
    return labelled


def _write(folder: Path, pairs: Sequence[Pair], job: Job, judge: str) -> Labelled:
    judged = [
        Judged(pair=pair, comparison=Comparison(**job.results[pair.id])) for pair in pairs if pair.id in job.results
    ]
    write_rows(folder / PREFERENCES_FILE, [_preference(found, judge) for found in judged if found.comparison.margin])
    statistics = pair_statistics(judged)
    told = {"judge": judge, "pairs": len(pairs), "judged": len(judged), "failed": job.num_failed}
    numbers = told | statistics.to_json() | asdict(job.counts)
    (folder / STATISTICS_FILE).write_text(json.dumps(numbers, indent=2) + "\n")
    return Labelled(statistics=statistics, num_pairs=len(pairs), num_failed=job.num_failed, counts=job.counts)


def _preference(found: Judged, judge: str) -> dict[str, Json]:
    pair, margin = found.pair, found.comparison.margin
    chosen, rejected = (pair.first, pair.second) if margin > 0 else (pair.second, pair.first)
    return preference(pair.prompt, chosen, rejected, abs(margin), judge)
