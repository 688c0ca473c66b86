"""1 when the completion has the required form, 0 when it has not.

It must not look at what the form contains. The preset is checked in one pass over its tags. Invariant: a form that is
not found in time is none.
"""

import re
from typing import Literal, Self

import regex
from pydantic import field_validator, model_validator

from reward_server.expressions import compiled, matches
from reward_server.function import RewardFunction, RewardOptions
from services.contracts.records import RewardSample

TAG = re.compile(r"</?(?:think|answer)>")
THINK_ANSWER = ["<think>", "</think>", "<answer>", "</answer>"]
MAX_SEARCH_S = 0.5
"""Longest search in one completion, in seconds of computing time."""


class RequiredFormat(RewardOptions):
    """Requires a preset form, or a regular expression that the whole completion matches."""

    preset: Literal["think_answer"] | None = None
    """think_answer: `<think>…</think><answer>…</answer>`, each tag once and nothing but white space around the two."""
    pattern: str | None = None
    """A regular expression for the whole completion, as for `regular_expression`; `.` matches line ends too."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        compiled(pattern or "", flags=regex.DOTALL)
        return pattern

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.preset is None) == (self.pattern is None):
            raise ValueError("give either preset (think_answer) or pattern (a regular expression)")
        return self

    def reward(self) -> RewardFunction:
        return RewardFunction(self.score, name="required_format", version="1", minimum=0.0, maximum=1.0)

    def score(self, sample: RewardSample) -> float:
        if self.pattern is None:
            return float(is_think_answer(sample.answer))
        form = compiled(self.pattern, flags=regex.DOTALL)
        return float(matches(form.fullmatch, sample.answer, timeout_s=MAX_SEARCH_S) or False)


def is_think_answer(completion: str) -> bool:
    """Whether the text is one think block and one answer block, in this order, and nothing else."""
    if TAG.findall(completion) != THINK_ANSWER:
        return False
    before, _, rest = completion.partition("<think>")
    between, _, rest = rest.partition("</think>")[2].partition("<answer>")
    after = rest.partition("</answer>")[2]
    return not (before.strip() or between.strip() or after.strip())
