"""1 when a regular expression matches the completion, or where `forbid` is set when it does not; 0 otherwise.

An expression that backtracks without end costs `timeout_s`, and the server goes on. It must not know what an
expression is for. Invariant: what is not decided in time is worth 0, with `forbid` as without it, so that making it
slow never pays.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from reward_server.expressions import compiled, matches
from reward_server.function import RewardFunction, RewardOptions, Score
from services.contracts.records import Failure, FailureCode, RewardSample


class RegularExpression(RewardOptions):
    """Matches the completion with a regular expression; flags are written into it, as in `(?is)yes.*no`."""

    pattern: str | None = None
    """The expression for every sample; where it is not given each sample's reference holds its own."""
    reference_field: str = "pattern"
    """Field of the reference that holds the expression."""
    where: Literal["whole", "anywhere"] = "whole"
    """Whether the whole completion has to match, or any part of it."""
    forbid: bool = False
    """Turn the reward round: 1 when the expression does not match."""
    timeout_s: float = Field(default=0.5, gt=0, le=5)
    """Longest search in one completion, in seconds of the process's computing time; what takes longer is worth 0."""

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        if self.pattern is not None:
            compiled(self.pattern)
        return self

    def reward(self) -> RewardFunction:
        return RewardFunction(self.score, name="regular_expression", version="1", minimum=0.0, maximum=1.0)

    def score(self, sample: RewardSample) -> Score:
        pattern = sample.reference.get(self.reference_field) if self.pattern is None else self.pattern
        try:
            expression = compiled(pattern)
        except ValueError as error:
            return Failure(code=FailureCode.INVALID_SAMPLE, message=f"reference.{self.reference_field}: {error}")
        match = expression.fullmatch if self.where == "whole" else expression.search
        found = matches(match, sample.answer, timeout_s=self.timeout_s)
        return 0.0 if found is None else float(found != self.forbid)
