"""What a prompt may ask of the form of its answer, one class a kind, in the manner of IFEval (arXiv 2311.07911).

A new kind is a class here, a line in `CONSTRAINTS`, and its test. They must not know of samples or rewards. Invariants:
a constraint that was built is valid; each check is linear in the text, whatever the text is.
"""

import json
import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from reward_server.languages import LANGUAGES, share_in
from services.contracts.fences import last_fenced_block
from services.contracts.records import Json
from services.contracts.settings import Section

WORD = re.compile(r"\w+(?:['’-]\w+)*")
# Tried at the first mark of a run only, so that a text of full stops is read once.
SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++[\"'”’)\]]*+(?=\s|$)|[。！？]")
EMPTY_LINE = re.compile(r"\n[ \t]*\n")
BULLET = re.compile(r"^[ \t]*[-*+•][ \t]+\S", re.MULTILINE)
NUMBERED = re.compile(r"^[ \t]*\d{1,4}[.)][ \t]+\S", re.MULTILINE)
HEADING = re.compile(r"^#{1,6}[ \t]+\S", re.MULTILINE)
HIGHLIGHT = re.compile(r"(?<!\*)\*{1,2}[^*\s][^*\n]{0,500}\*{1,2}(?!\*)")
PLACEHOLDER = re.compile(r"\[[^\[\]\n]{1,200}\]")
TITLE = re.compile(r"<<[^<>\n]{1,500}>>")

Text = Annotated[str, Field(min_length=1)]


class Constraint(Section):
    """One demand on a text."""

    @abstractmethod
    def holds(self, text: str) -> bool:
        """Whether the text does what is demanded."""


class Count(Constraint):
    """A number that lies between bounds, or is exact."""

    at_least: int | None = Field(default=None, ge=0)
    """Smallest number that is accepted."""
    at_most: int | None = Field(default=None, ge=0)
    """Largest number that is accepted."""
    exactly: int | None = Field(default=None, ge=0)
    """The only number that is accepted."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if (self.exactly is None) == (self.at_least is None and self.at_most is None):
            raise ValueError("give either exactly, or at_least and at_most, or one of these two")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least is {self.at_least}, more than at_most ({self.at_most}): nothing could hold")
        return self

    def holds(self, text: str) -> bool:
        number = self.count(text)
        if self.exactly is not None:
            return number == self.exactly
        return (self.at_least or 0) <= number and (self.at_most is None or number <= self.at_most)

    @abstractmethod
    def count(self, text: str) -> int:
        """The number that is bounded."""


class Words(Count):
    """Number of words."""

    def count(self, text: str) -> int:
        return sum(1 for _ in WORD.finditer(text))


class Sentences(Count):
    """Number of sentences; what follows the last full stop counts as one."""

    def count(self, text: str) -> int:
        return sum(1 for part in SENTENCE_END.split(text) if WORD.search(part))


class Paragraphs(Count):
    """Number of parts between separators that are not empty."""

    separator: str | None = Field(default=None, min_length=1)
    """What stands between two, such as `***`; an empty line where it is not given."""
    distinct: bool = False
    """Refuse a text two of whose parts are the same."""

    def holds(self, text: str) -> bool:
        parts = self._parts(text)
        return super().holds(text) and not (self.distinct and len(set(parts)) < len(parts))

    def count(self, text: str) -> int:
        return len(self._parts(text))

    def _parts(self, text: str) -> list[str]:
        parts = EMPTY_LINE.split(text) if self.separator is None else text.split(self.separator)
        return [part.strip() for part in parts if part.strip()]


class Lines(Count):
    """Number of lines of a sort."""

    sort: Literal["any", "bullet", "numbered", "heading"] = "any"
    """Bullets begin with -, *, + or •; numbers with 1. or 1); headings with #. Empty lines never count."""

    def count(self, text: str) -> int:
        if self.sort == "any":
            return sum(1 for line in text.splitlines() if line.strip())
        pattern = {"bullet": BULLET, "numbered": NUMBERED, "heading": HEADING}[self.sort]
        return sum(1 for _ in pattern.finditer(text))


class Occurrences(Count):
    """How often a word or phrase occurs, as whole words."""

    text: Text
    """The word or phrase; capitals and small letters are the same."""

    def count(self, text: str) -> int:
        return sum(1 for _ in _phrase(self.text).finditer(text))


class Letter(Count):
    """How often a character occurs."""

    letter: Annotated[str, Field(min_length=1, max_length=1)]
    """The character; capitals and small letters are the same."""

    def count(self, text: str) -> int:
        return text.casefold().count(self.letter.casefold())


class Marks(Count):
    """Number of marked parts."""

    sort: Literal["highlight", "placeholder", "title", "capital_word"]
    """highlight: *so* or **so**; placeholder: [so]; title: <<so>>; capital_word: SO."""

    def count(self, text: str) -> int:
        if self.sort == "capital_word":
            return sum(1 for match in WORD.finditer(text) if match.group().isupper())
        pattern = {"highlight": HIGHLIGHT, "placeholder": PLACEHOLDER, "title": TITLE}[self.sort]
        return sum(1 for _ in pattern.finditer(text))


class Includes(Constraint):
    """Some words or phrases occur."""

    texts: tuple[Text, ...] = Field(min_length=1, max_length=100)
    """The words or phrases; capitals and small letters are the same."""
    at_least: int | None = Field(default=None, ge=1)
    """How many of them must occur; every one where it is not given."""

    def holds(self, text: str) -> bool:
        num_found = sum(1 for wanted in self.texts if _phrase(wanted).search(text))
        return num_found >= (self.at_least or len(self.texts))


class Excludes(Constraint):
    """None of some words or phrases occurs."""

    texts: tuple[Text, ...] = Field(min_length=1, max_length=100)
    """The words or phrases; capitals and small letters are the same."""

    def holds(self, text: str) -> bool:
        return not any(_phrase(refused).search(text) for refused in self.texts)


class Starts(Constraint):
    """The text begins with a phrase."""

    text: Text
    """The phrase; white space before it and capitals do not matter."""

    def holds(self, text: str) -> bool:
        return text.lstrip()[: 2 * len(self.text)].casefold().startswith(self.text.casefold())


class Ends(Constraint):
    """The text ends with a phrase."""

    text: Text
    """The phrase; white space, a closing quotation mark after it, and capitals do not matter."""

    def holds(self, text: str) -> bool:
        phrase, whole = self.text.strip(), text.rstrip()
        endings = (whole, whole.removesuffix('"').rstrip())
        return any(ending[-2 * len(phrase) :].casefold().endswith(phrase.casefold()) for ending in endings)


class ParagraphStarts(Constraint):
    """A paragraph begins with a word or phrase."""

    paragraph: int = Field(ge=1)
    """Which paragraph, from 1; paragraphs are divided by empty lines."""
    of: int | None = Field(default=None, ge=1)
    """How many paragraphs there must be; as many as one likes where it is not given."""
    text: Text
    """The word or phrase; capitals and small letters are the same."""

    def holds(self, text: str) -> bool:
        paragraphs = [part for part in EMPTY_LINE.split(text) if part.strip()]
        is_number_right = self.of in (None, len(paragraphs)) and len(paragraphs) >= self.paragraph
        return is_number_right and bool(_phrase(self.text).match(paragraphs[self.paragraph - 1].lstrip(" \t\n\"'*_#")))


class Language(Constraint):
    """The text is in a language."""

    language: Literal[LANGUAGES]  # type: ignore[valid-type]  # mypy knows literals only, and these are made
    """ISO 639-1 code of the language."""

    def holds(self, text: str) -> bool:
        return share_in(self.language, text) > 0.5


class Case(Constraint):
    """All letters are capitals, or none is."""

    case: Literal["upper", "lower"]
    """Which letters are used."""

    def holds(self, text: str) -> bool:
        return text.isupper() if self.case == "upper" else text.islower()


class Format(Constraint):
    """The text as a whole has a form."""

    format: Literal["json", "quoted", "no_comma"]
    """json: JSON, bare or in a fenced block; quoted: within double quotes; no_comma: without a comma."""

    def holds(self, text: str) -> bool:
        if self.format == "json":
            return _is_json(last_fenced_block(text, languages=("json",)) or text)
        bare = text.strip()
        if self.format == "quoted":
            return len(bare) > 2 and bare[0] == bare[-1] == '"'
        return bool(bare) and not {",", "，", "、"} & set(bare)


CONSTRAINTS: Mapping[str, type[Constraint]] = {
    "words": Words,
    "sentences": Sentences,
    "paragraphs": Paragraphs,
    "lines": Lines,
    "occurrences": Occurrences,
    "letter": Letter,
    "marks": Marks,
    "includes": Includes,
    "excludes": Excludes,
    "starts": Starts,
    "ends": Ends,
    "paragraph_starts": ParagraphStarts,
    "language": Language,
    "case": Case,
    "format": Format,
}


def constraint(values: Json) -> Constraint:
    """The constraint that `values` describe: an object with its `kind`, and the fields of that kind.

    Raises:
        ValueError: naming the kind or field that is wrong.
    """
    if not isinstance(values, dict) or values.get("kind") not in CONSTRAINTS:
        raise ValueError(f"{values!r:.80} is no constraint: it needs a kind, one of {', '.join(CONSTRAINTS)}")
    kind = str(values["kind"])
    try:
        return CONSTRAINTS[kind].model_validate({name: value for name, value in values.items() if name != "kind"})
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or kind}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors()
        )
        known = ", ".join(CONSTRAINTS[kind].model_fields)
        raise ValueError(f"constraint {kind!r}: {faults} (its fields are {known})") from error


def _phrase(phrase: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)", re.IGNORECASE)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
