"""A penalty in [-1, 0] for text that repeats itself.

    share(y) = 1 - (distinct n-grams of y) / (n-grams of y)               measure: ngrams
    share(y) = 1 - (bytes of y, compressed) / (bytes of y)                measure: compression
    value    = -max(0, share(y) - allowed) / (1 - allowed)

n-grams see copied phrases; compression also sees what repeats further apart, or with variations. It must not know what
a text says. Invariant: the cost is linear in the text's length.
"""

import zlib
from typing import Literal, Self

from pydantic import Field, model_validator

from reward_server.function import RewardFunction, RewardOptions
from services.contracts.records import Reward, RewardSample


class Repetition(RewardOptions):
    """Punishes the share of a completion that repeats what stands before it, beyond what is allowed."""

    measure: Literal["ngrams", "compression"] = "ngrams"
    """What the share is taken of: n-grams seen before, or bytes that compression (zlib) saves."""
    ngram_size: int = Field(default=4, ge=1)
    """Words or characters in an n-gram."""
    unit: Literal["words", "characters"] = "words"
    """What n-grams are made of; characters for languages that write no spaces."""
    allowed: float | None = Field(default=None, ge=0, lt=1)
    """Share that costs nothing; 0.1 for n-grams and 0.7 for compression where it is not given."""

    @model_validator(mode="after")
    def _one_measure(self) -> Self:
        if self.measure == "compression" and {"ngram_size", "unit"} & self.model_fields_set:
            raise ValueError("ngram_size and unit belong to measure: ngrams; compression has neither")
        return self

    def reward(self) -> RewardFunction:
        return RewardFunction(self.score, name="repetition", version="1", minimum=-1.0, maximum=0.0)

    def score(self, sample: RewardSample) -> Reward:
        text = sample.completion
        if self.measure == "compression":
            share = compressible_share(text)
        else:
            share = repeated_share(text.split() if self.unit == "words" else text, self.ngram_size)
        allowed = self._allowed()
        return Reward(value=min(0.0, (allowed - share) / (1.0 - allowed)), components={"share": share})

    def _allowed(self) -> float:
        if self.allowed is not None:
            return self.allowed
        return 0.7 if self.measure == "compression" else 0.1


def repeated_share(units: list[str] | str, size: int) -> float:
    """Share of the n-grams of `size` units that occur earlier in the same text; 0 where there are none."""
    count = len(units) - size + 1
    if count <= 0:
        return 0.0
    distinct = {
        units[start : start + size] if isinstance(units, str) else tuple(units[start : start + size])
        for start in range(count)
    }
    return 1.0 - len(distinct) / count


def compressible_share(text: str) -> float:
    """Share of the UTF-8 bytes that zlib saves; 0 where it saves none."""
    content = text.encode(errors="replace")
    return max(0.0, 1.0 - len(zlib.compress(content)) / len(content)) if content else 0.0
