"""1 when the completion is the reference answer, character for character; 0 when it is not.

It must not interpret either: for numbers and formulas see `math_answer`.
"""

from reward_server.function import RewardFunction, RewardOptions, Score
from services.contracts.records import Failure, FailureCode, RewardSample


class ExactMatch(RewardOptions):
    """Compares the completion with a field of the reference."""

    reference_field: str = "answer"
    """Field of the reference that holds the right answer."""
    strip: bool = True
    """Ignore white space at both ends."""
    ignore_case: bool = False
    """Take capital and small letters as the same."""

    def reward(self) -> RewardFunction:
        return RewardFunction(self.score, name="exact_match", version="1", minimum=0.0, maximum=1.0)

    def score(self, sample: RewardSample) -> Score:
        wanted = sample.reference.get(self.reference_field)
        if not isinstance(wanted, str | int | float):
            message = f"reference.{self.reference_field} is {wanted!r:.80}; exact_match needs a text or a number there"
            return Failure(code=FailureCode.INVALID_SAMPLE, message=message)
        return float(self._normalised(sample.answer) == self._normalised(str(wanted)))

    def _normalised(self, text: str) -> str:
        text = text.strip() if self.strip else text
        return text.casefold() if self.ignore_case else text
