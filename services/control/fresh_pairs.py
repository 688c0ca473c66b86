"""The queue of fresh pairs: completions of a live run, told apart by another reward, for a reward model to learn.

It must not know how a reward model is trained. Invariants: the samples of a step are labelled once, all together, and
never before the run has written the whole step; the labels of a prompt are of one version of the labelling reward; a
queue that was killed loses at most the step that it was labelling, and labels that one again.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import Field

from rollout_workers.rows import Row, read_rows
from services.contracts.interfaces import RewardScorer
from services.contracts.records import Failure, Reward, RewardSample
from services.contracts.settings import Section
from services.control.metrics import SAMPLES_FILE, SampleRecord, to_sample
from services.control.step_log import LineTail, StepLog, read_lines

PAIRS_FILE = "pairs.jsonl"


class PairsConfig(Section):
    """What makes a pair, and how many of them make a round."""

    per_round: int = Field(default=64, ge=1)
    """Fresh pairs after which the reward model is trained anew."""
    window: int = Field(default=4096, ge=1)
    """Newest pairs that it is trained on."""
    min_margin: float = Field(default=0.0, ge=0)
    """The labels of the two completions must differ by more than this."""
    more: Path | None = None
    """A .jsonl file of further pairs, such as people's, each {prompt, chosen, rejected}; read anew for each version."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FreshPair:
    """The best and the worst completion of one prompt, by their labels; a row that `trireme reward-model` reads with
    template: plain, so that it learns the text that it is served: the one that the policy continued."""

    step: int
    prompt: str
    chosen: str
    rejected: str
    margin: float
    label_version: str


class PairQueue:
    """Grows by what the run in `follow` samples; `folder` keeps it.

    Attributes:
        num_pairs: pairs so far.
        num_failed: prompts that could not be labelled, since this was made.
        last_failure: why the last of these could not.
    """

    def __init__(self, folder: Path, follow: Path, config: PairsConfig) -> None:
        self._path = folder / PAIRS_FILE
        known = read_lines(self._path)
        self._step = known[-1]["step"] - 1 if known else 0  # The last step may have been cut short.
        self._log = StepLog(self._path, resume_step=self._step)
        self._config = config
        self._samples = LineTail(follow / SAMPLES_FILE)
        self._unlabelled: defaultdict[int, list[SampleRecord]] = defaultdict(list)
        self.num_pairs = len(read_lines(self._path))
        self.num_failed = 0
        self.last_failure = ""

    async def fill(self, labels: RewardScorer) -> None:
        """Label what the run has sampled since the last time.

        Raises:
            RewardUnavailable, RewardContractError.
        """
        for step, samples in self._whole_steps():
            pairs = [pair for group in by_prompt(samples) if (pair := await self._pair(group, labels)) is not None]
            for pair in pairs:
                self._log.append(asdict(pair))
            self.num_pairs += len(pairs)
            self._step = step

    def newest(self) -> list[Row]:
        """The pairs to train on. Raises `UserError`: the file of further pairs cannot be read."""
        more = read_rows(str(self._config.more)) if self._config.more else []
        return [*more, *read_lines(self._path)[-self._config.window :]]

    def close(self) -> None:
        self._log.close()
        self._samples.close()

    def _whole_steps(self) -> Iterator[tuple[int, list[SampleRecord]]]:
        """The steps not yet labelled, but for the newest, which the run may still be writing."""
        lines = self._samples.read()
        if self._samples.is_anew:
            self._unlabelled.clear()
        for sample in map(to_sample, lines):
            if sample.step > self._step:
                self._unlabelled[sample.step].append(sample)
        for step in sorted(self._unlabelled)[:-1]:
            yield step, self._unlabelled[step]
            del self._unlabelled[step]

    async def _pair(self, group: Sequence[SampleRecord], labels: RewardScorer) -> FreshPair | None:
        """The pair of a prompt; None where its completions do not differ, or cannot be labelled."""
        outcomes = await labels.score([to_reward_sample(sample) for sample in group])
        labelled: list[tuple[Reward, SampleRecord]] = []
        for outcome, sample in zip(outcomes, group, strict=True):
            if isinstance(outcome, Failure):
                self.num_failed += 1
                self.last_failure = f"{outcome.code}: {outcome.message}"
                return None
            labelled.append((outcome, sample))
        best, chosen = max(labelled, key=lambda one: one[0].value)
        worst, rejected = min(labelled, key=lambda one: one[0].value)
        margin = best.value - worst.value
        if margin <= self._config.min_margin:
            return None
        return FreshPair(
            step=chosen.step,
            prompt=chosen.prompt,
            chosen=chosen.completion,
            rejected=rejected.completion,
            margin=margin,
            label_version=best.version,
        )


def by_prompt(samples: Iterable[SampleRecord]) -> list[list[SampleRecord]]:
    """The completions of each prompt that has several which differ."""
    groups: defaultdict[str, list[SampleRecord]] = defaultdict(list)
    for sample in samples:
        groups[sample.prompt_id].append(sample)
    return [group for group in groups.values() if len({sample.completion for sample in group}) > 1]


def to_reward_sample(sample: SampleRecord) -> RewardSample:
    """What a reward service is told of a completion; its tokens are not in a run's samples."""
    return RewardSample(
        id=f"{sample.prompt_id}/{sample.sample_index}",
        prompt=sample.prompt,
        messages=tuple(sample.messages),
        completion=sample.completion,
        reference=sample.reference,
        policy_version=sample.policy_version,
        finish_reason=sample.finish_reason,
        turns=tuple(sample.turns),
    )
