"""Rejection sampling: which scored completions of a model become demonstrations.

It must not know how they were sampled or scored. Invariants: every completion is either kept or counted under the first
reason that speaks against it; what is kept depends on texts and rewards alone.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Self

from pydantic import Field, model_validator

from services.contracts.errors import SampleNotScorable, TriremeError
from services.contracts.records import Failure, Json, Prompt, Reward, Rollout
from services.contracts.settings import Section
from services.control.sampling import SampledGroup

DEMONSTRATIONS_FILE = "demonstrations.jsonl"
NOT_SCORED = "not scored"
UNFINISHED = "cut off at the longest completion"
BELOW = "below select.threshold"
DUPLICATE = "the same as another of its prompt"
BEYOND = "beyond select.max_per_prompt"


class SelectConfig(Section):
    """Which scored completions become demonstrations."""

    threshold: float | None = None
    """Keep a completion only if its reward is at least this."""
    component: str | None = None
    """Reward component that threshold and rank go by; the total where it is not given."""
    max_per_prompt: int | None = Field(default=None, ge=1)
    """Keep so many completions of one prompt at most, those with the highest reward, of equal ones the first sampled:
    1 is best of n."""
    deduplicate: bool = True
    """Keep the same text only once a prompt."""
    keep_unfinished: bool = False
    """Also keep completions that ended at rollout.max_completion_tokens, which would teach to break off."""

    @model_validator(mode="after")
    def _selects(self) -> Self:
        if self.threshold is None and self.max_per_prompt is None:
            raise ValueError(
                "select would keep good and bad completions alike; set threshold, for example 1.0, or max_per_prompt, "
                "for example 1"
            )
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A completion that becomes a demonstration, and the reward that it was chosen by."""

    prompt: Prompt
    rollout: Rollout
    reward: float

    def to_row(self) -> dict[str, Json]:
        """As `trireme sft` reads it with prompt_field: prompt, response_field: response; a chat's prompt as turns. A
        dialogue has the column messages besides, for messages_field, which learns the policy's turns alone."""
        dialogue: dict[str, Json] = {}
        if self.rollout.turns:
            dialogue["messages"] = [asdict(message) for message in (*self.prompt.messages, *self.rollout.turns)]
        return dialogue | {
            "prompt": [asdict(message) for message in self.prompt.messages] or self.prompt.text,
            "response": self.rollout.completion,
            "reward": self.reward,
            "reference": dict(self.prompt.reference),
            "row": self.prompt.row,
            "sample": self.rollout.sample_index,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """What was kept, in the order of the prompts and best first, and how many were not, by reason."""

    kept: Sequence[Kept]
    dropped: Mapping[str, int]
    num_prompts: int

    @property
    def num_prompts_kept(self) -> int:
        """Prompts of which at least one completion was kept."""
        return len({kept.prompt.id for kept in self.kept})

    def summary(self) -> dict[str, Json]:
        return {
            "num_kept": len(self.kept),
            "dropped": dict(self.dropped),
            "num_prompts": self.num_prompts,
            "num_prompts_kept": self.num_prompts_kept,
        }


def select(sampled: Sequence[SampledGroup], config: SelectConfig, *, max_failed_prompts: int) -> Selection:
    """Keep the completions that the rules leave.

    Args:
        max_failed_prompts: prompts with a completion that has no score, above which this is an error.

    Raises:
        SampleNotScorable: there are more of them, or a reward has no such component.
        TriremeError: nothing is left.
    """
    _check_failures(sampled, max_failed_prompts)
    dropped: Counter[str] = Counter()
    kept = [one for group in sampled for one in _of_prompt(group, config, dropped)]
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise TriremeError(f"no completion of {len(sampled)} prompts is left: {reasons}; loosen the section select")
    return Selection(kept=kept, dropped=dict(dropped), num_prompts=len(sampled))


def _of_prompt(sampled: SampledGroup, config: SelectConfig, dropped: Counter[str]) -> list[Kept]:
    candidates = [
        Kept(prompt=sampled.group.prompt, rollout=rollout, reward=value) for rollout, value in _values(sampled, config)
    ]
    if len(candidates) < len(sampled.group.rollouts):
        dropped[NOT_SCORED] += len(sampled.group.rollouts) - len(candidates)
    seen: set[str] = set()
    kept: list[Kept] = []
    for candidate in sorted(candidates, key=lambda one: (-one.reward, one.rollout.sample_index)):
        reason = _against(candidate, config, seen, len(kept))
        if reason:
            dropped[reason] += 1
        else:
            kept.append(candidate)
            seen.add(candidate.rollout.completion)
    return kept


def _against(candidate: Kept, config: SelectConfig, seen: set[str], num_kept: int) -> str | None:
    if candidate.rollout.finish_reason == "length" and not config.keep_unfinished:
        return UNFINISHED
    if config.threshold is not None and candidate.reward < config.threshold:
        return BELOW
    if config.deduplicate and candidate.rollout.completion in seen:
        return DUPLICATE
    return BEYOND if config.max_per_prompt is not None and num_kept >= config.max_per_prompt else None


def _values(sampled: SampledGroup, config: SelectConfig) -> Iterator[tuple[Rollout, float]]:
    """The completions that have a score, each with it."""
    for rollout, outcome in zip(sampled.group.rollouts, sampled.outcomes, strict=True):
        if isinstance(outcome, Reward):
            if config.component is not None and config.component not in outcome.components:
                raise SampleNotScorable(
                    f"select.component is {config.component!r}, and the reward has {sorted(outcome.components)}"
                )
            yield rollout, outcome.value if config.component is None else outcome.components[config.component]


def _check_failures(sampled: Sequence[SampledGroup], max_failed_prompts: int) -> None:
    failed = [
        (group.group.prompt, outcome) for group in sampled for outcome in group.outcomes if isinstance(outcome, Failure)
    ]
    num_prompts = len({prompt.id for prompt, _ in failed})
    if num_prompts > max_failed_prompts:
        prompt, failure = failed[-1]
        raise SampleNotScorable(
            f"{num_prompts} prompts could not be scored and train.max_failed_prompts is {max_failed_prompts}; the last "
            f"is row {prompt.row}: {failure.message} ({failure.code})"
        )
