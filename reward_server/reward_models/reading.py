"""From a sample to the tokens that a reward model reads, and from its logits to the scores and the reward.

It must not know torch. Invariants: the score of a step is that of the step's last token; scores are normalised by the
card; steps are spans of the completion in code points, in order, and cover what was read of it.
"""

from __future__ import annotations

import math
import re
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from services.contracts.records import RewardSample
from services.contracts.reward_model import RewardModelCard
from services.contracts.reward_text import LONGEST_TOKEN, encode_reward_text

Aggregate = Literal["min", "mean", "last", "product"]
Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What the model reads of one sample.

    Attributes:
        token_ids: (T,) token ids.
        positions: of the steps' last tokens; none for an outcome head.
        spans: the characters of each of these steps; those of an empty completion are [0, 0).
        num_left_out: tokens at the beginning that found no room.
    """

    token_ids: array[int]
    positions: tuple[int, ...] = ()
    spans: tuple[Span, ...] = ()
    num_left_out: int = 0


def read_sample(tokenizer: Any, card: RewardModelCard, sample: RewardSample) -> Reading:  # Any: transformers is untyped
    """The tokens of a sample, and where its steps end; of what is left out for its length no step remains."""
    spans: tuple[Span, ...] = ()
    if card.head == "process":
        spans = step_spans(sample.completion, card.step_separator, longest=card.max_tokens * LONGEST_TOKEN)
    text = encode_reward_text(
        tokenizer,
        prompt=sample.prompt,
        messages=sample.messages,
        completion=sample.completion,
        template=card.template,
        max_tokens=card.max_tokens,
        step_ends=[end for _, end in spans],
    )
    kept = [(found, span) for found, span in zip(text.step_positions, spans, strict=True) if found is not None]
    return Reading(
        token_ids=text.token_ids,
        positions=tuple(position for position, _ in kept),
        spans=tuple(span for _, span in kept),
        num_left_out=text.num_left_out,
    )


def step_spans(completion: str, separator: str, *, longest: int = sys.maxsize) -> tuple[Span, ...]:
    """The steps of a completion: each ends with its separators, of which several in a row end one step.

    Args:
        longest: steps that end further from the end than this many characters are left out.
    """
    end = re.escape(separator)
    step = re.compile(rf"(?:{end})*.+?(?:(?:{end})+|\Z)", re.DOTALL)
    first = completion.rfind(separator, 0, max(0, len(completion) - longest))
    steps = step.finditer(completion, 0 if first < 0 else first + len(separator))
    return tuple(step.span() for step in steps) or ((0, 0),)


def normalised(card: RewardModelCard, logits: Sequence[float]) -> list[float]:
    """The scores that are served for these logits."""
    return [(logit - card.mean) / card.std for logit in logits]


def value_of_steps(card: RewardModelCard, logits: Sequence[float], how: Aggregate) -> float:
    """A completion's value by those of its steps; `product` multiplies the probabilities that they are right."""
    if how == "product":
        return math.prod(1.0 / (1.0 + math.exp(-max(logit, -700.0))) for logit in logits)
    scores = normalised(card, logits)
    return {"min": min(scores), "mean": fmean(scores), "last": scores[-1]}[how]
