"""The share of a completion that is in the wanted language, by stretches of a few words.

A policy that reasons in a mixture of languages is drawn to one of them (the language consistency reward of DeepSeek-R1,
arXiv 2501.12948). A word in another script is wrong wherever it stands; the others are judged stretch by stretch. It
must not judge what is said. Invariants: letters whose language cannot be told count half; the cost is linear.
"""

from collections.abc import Iterator

from pydantic import Field, field_validator

from reward_server.function import RewardFunction, RewardOptions, Score
from reward_server.languages import LANGUAGES, SCRIPTS, languages_of, script_of, words_of
from services.contracts.records import Failure, FailureCode, RewardSample


class Language(RewardOptions):
    """Rewards a completion for being in one language; code and formulas are seen as words too."""

    language: str | None = None
    """ISO 639-1 code of the language of every sample; where it is not given each sample's reference holds its own."""
    reference_field: str = "language"
    """Field of the reference that holds the code."""
    stretch_words: int = Field(default=12, ge=1)
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
        return share_in(str(wanted), sample.completion, self.stretch_words)


def share_in(language: str, text: str, stretch_words: int) -> float:
    """Letters of words that are in `language`, over all letters; 1/2 where there are none."""
    right, total = 0.0, 0
    for words in stretches(text, stretch_words):
        own = [word for word in words if script_of(word[0]) in SCRIPTS[language]]
        found = languages_of(own)
        total += sum(map(len, words))
        right += sum(map(len, own)) * (float(language in found) if found else 0.5)
    return right / total if total else 0.5


def stretches(text: str, num_words: int) -> Iterator[list[str]]:
    """The words of a text, so many at a time; the last stretch takes the rest, as fewer would tell little."""
    words = list(words_of(text))
    last = max(len(words) // num_words - 1, 0) * num_words
    yield from (words[start : start + num_words] for start in range(0, last, num_words))
    yield words[last:]
