"""The share of a completion that is in the wanted language, by stretches of a few words.

A policy that reasons in a mixture of languages is drawn to one of them (the language consistency reward of DeepSeek-R1,
arXiv 2501.12948). A word in another script is wrong wherever it stands; the others are judged stretch by stretch. It
must not judge what is said. Invariants: letters whose language cannot be told count half; the cost is linear.
"""

from pydantic import Field, field_validator

from reward_server.function import RewardFunction, RewardOptions, Score
from reward_server.languages import LANGUAGES, STRETCH_WORDS, share_in
from services.contracts.records import Failure, FailureCode, RewardSample


class Language(RewardOptions):
    """Rewards a completion for being in one language; code and formulas are seen as words too."""

    language: str | None = None
    """ISO 639-1 code of the language of every sample; where it is not given each sample's reference holds its own."""
    reference_field: str = "language"
    """Field of the reference that holds the code."""
    stretch_words: int = Field(default=STRETCH_WORDS, ge=1)
    """Words that are judged together; fewer find shorter switches of language and err more often."""

    @field_validator("language")
    @classmethod
    def _is_known(cls, language: str | None) -> str | None:
        if language is not None and language not in LANGUAGES:
            raise ValueError(f"{language!r} is not among the languages that are told apart: {', '.join(LANGUAGES)}")
        return language

    def reward(self) -> RewardFunction:
        return RewardFunction(self.score, name="language", version="1", minimum=0.0, maximum=1.0)

    def score(self, sample: RewardSample) -> Score:
        wanted = self.language or sample.reference.get(self.reference_field)
        if wanted not in LANGUAGES:
            message = (
                f"reference.{self.reference_field} is {wanted!r:.80}; one of {', '.join(LANGUAGES)} is needed there"
            )
            return Failure(code=FailureCode.INVALID_SAMPLE, message=message)
        return share_in(str(wanted), sample.answer, self.stretch_words)
