"""1 when the last answer in the completion equals the reference, as a number or as a formula; 0 when it does not.

Plain numbers are compared exactly, without computer algebra; everything else by math-verify, for a limited time, which
takes the main thread's signals: hence `isolate`. math-verify's own timeouts count the time of a busy machine, and are
off. It must not know how a completion was sampled. Invariant: an answer is wrong that cannot be read as mathematics, or
is not decided in time; a reference that cannot be read is a `Failure`, as no answer to it could be right.
"""

import functools
import itertools
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from reward_server.function import RewardFunction, RewardOptions, Score
from reward_server.time_limit import within
from services.contracts.records import Failure, FailureCode, RewardSample

# Longer answers are cut or not seen, which keeps every search below linear, whatever a policy writes; repetitions that
# could share the same characters are possessive.
MAX_ANSWER_CHARACTERS = 1000
SHORT = f"{{1,{MAX_ANSWER_CHARACTERS}}}"
# What introduces an answer: GSM8K's mark, and words; `\boxed{` is found by its braces. The answer itself is only looked
# at, not consumed, so that a later mark on the same line is found too.
HASHES = re.compile(rf"####[ \t]*(?=(?P<answer>[^\n]{SHORT}))")
WORDS = re.compile(rf"\banswer(?:[ \t]+is|[ \t]*[:=])[ \t*:]{{0,9}}(?=(?P<answer>[^\n]{SHORT}))", re.IGNORECASE)
BOXED = r"\boxed{"
LATEX = re.compile(
    rf"\$(?!\s)(?P<dollars>[^$\n]{SHORT}?)(?<!\s)\$(?!\d)|\\\((?P<round>.{SHORT}?)\\\)|\\\[(?P<square>.{SHORT}?)\\\]",
    re.DOTALL,
)
BARE_NUMBER = re.compile(r"(?<![\w.,])(?:(?<![\d)])-)?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?%?(?!\w)")

# Words behind a number that change its value, or that lead on to another one.
NOT_UNITS = (
    "e|i|x|pi|sqrt|sin|cos|tan|log|ln|exp|times|hundred|thousand|million|billion|trillion|dozen|or|and|to|mod|am|pm"
)
DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d])|\d+(?:\.\d+)?|\.\d+)"
UNIT = rf"(?!(?i:{NOT_UNITS})\b)(?:[A-Za-z]{{3,}}|cm|ft|hr|kg|km|lb|mg|mi|ml|mm|oz)\b(?:\^\{{?[23]\}}?)?"
SYMBOL = r"(?:\\?%|\\?[$£€¢]|°(?:\s?[CF]\b)?)"
NUMBER = re.compile(
    rf"(?P<sign>[-+−]?)\s*(?:\\?[$£€])?\s*(?P<number>{DIGITS})(?:/(?P<divisor>\d+))?\s*(?P<symbol>{SYMBOL})?"
    rf"(?:\$?[\s.,;:!?)]+{UNIT}[^\d+*^=<>\\_−]*|\$?[\s.,;:!?)]*)",
)
# In a sentence a number may be followed by the next sentence, or by words, also behind a dash or a bracket; but not by
# "or" and another number.
NUMBER_IN_PROSE = re.compile(
    r"(?!.*\bor\W{0,4}\d)"
    rf"(?:\\?\$|\\\()?\s*+(?P<alone>[-+−]?\s*+(?:\\?[$£€])?{DIGITS}(?:/\d+)?(?:\s*+{SYMBOL})?)"
    r"(?:\s*+(?:\$|\\\)))?+[*_`]*+"
    rf"(?:[.!?][*_`]*\s|[\s,;:]++(?:\(|[-–—]\s)?+\s*+(?!(?i:{NOT_UNITS})\b)(?:[^\W\d_]{{2,}}|a\b)(?!\s*[-+*/^=<>\\])"
    r"|,\s+I\s)"
)
# The base of a number, which algebra leaves out. What has none is in base ten.
BASE = re.compile(r"[\d)]\s*_\s*(?:\{\s*)?(?!10\b)(\d+)")
WORD = re.compile(r"[A-Za-z]{3,}")
# Quantities in several units, and times of day: algebra would multiply their letters, as it would those of a word.
READ_AS_TEXT = re.compile(
    rf"(?:(?>{DIGITS})(?:\s++[A-Za-z]|[A-Za-z]{{2}})[A-Za-z]*+[\s.,]*+(?:and\s++)?+){{2,}}+"
    r"|\d{1,2}(?::\d\d)?\s*[ap]\.?\s?m\.?",
    re.IGNORECASE,
)
MORE = re.compile(r"\W*(?:or|and)\b")
END_OF_EMPHASIS = re.compile(r"[*_`]++(?=[.,;:!?]*+$)")
TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mbox)\{([^{}]*)\}")
ASSIGNED = re.compile(r"[A-Za-z]\w*\s*=(?!=)\s*")
SPACING = re.compile(r"\\[!,;]|\\ |\{(?=,\})|(?<=,)\}")
# Powers that computer algebra would work out until it is killed: no right answer looks like this unless word for word.
EXPLOSIVE = re.compile(r"(?:\^|\*\*)\s*[{(]*\s*-?\d{4,}|(?:\^|\*\*)\s*(?:\{[^{}]*|\w\s*)(?:\^|\*\*)|\d\s*!")
MAX_NUMBER_DIGITS = 100
# Brackets in brackets, or bars that may open or close, take math-verify's parser seconds from this depth on.
MAX_NESTING = 12
MAX_ALGEBRA_S = 2.0
"""Longest comparison, in seconds of computing time; ordinary ones take hundredths."""


class MathAnswer(RewardOptions):
    """Compares the completion's last answer with a field of the reference."""

    reference_field: str = "answer"
    """Field of the reference that holds the right answer; of a worked solution, what follows `####` or is boxed."""
    require_mark: bool = False
    """Count only an answer that is marked: after `####`, in a box, or after "answer is"; not just the last number."""

    def reward(self) -> RewardFunction:
        return RewardFunction(self.score, name="math_answer", version="2", minimum=0.0, maximum=1.0, isolate=True)

    def score(self, sample: RewardSample) -> Score:
        wanted = sample.reference.get(self.reference_field)
        if not isinstance(wanted, str | int | float) or not str(wanted).strip():
            message = f"reference.{self.reference_field} is {wanted!r:.80}; math_answer needs the right answer there"
            return Failure(code=FailureCode.INVALID_SAMPLE, message=message)
        reference = marked_answer(str(wanted), marks=(last_hashes, last_box)) or str(wanted)
        if as_number(reference) is None and not is_text(reference) and not is_formula(reference):
            message = f"the reference {reference!r:.80} is neither a number nor a formula"
            return Failure(code=FailureCode.INVALID_SAMPLE, message=message)
        answer = last_answer(sample.answer, require_mark=self.require_mark)
        return float(answer is not None and is_equal(reference, answer))


@dataclass(frozen=True, slots=True)
class Found:
    """An answer, and where in the text its mark starts."""

    answer: str
    start: int


def last_answer(text: str, *, require_mark: bool = False) -> str | None:
    """The answer marked last; where none is marked, the last formula or number unless `require_mark`."""
    answer = marked_answer(text, marks=(last_hashes, last_box, last_words))
    if answer is not None or require_mark:
        return answer
    formulas = [(match.end(), match.group(match.lastgroup or 0)) for match in LATEX.finditer(text)]
    numbers = [(match.end(), match.group()) for match in BARE_NUMBER.finditer(text)]
    return max(formulas[-1:] + numbers[-1:], default=(0, None))[1]


def marked_answer(text: str, *, marks: tuple[Callable[[str], Found | None], ...]) -> str | None:
    """The answer that starts last among those marked in one of these ways."""
    found = [answer for answer in (mark(text) for mark in marks) if answer is not None]
    return max(found, key=lambda answer: answer.start).answer if found else None


def last_hashes(text: str) -> Found | None:
    """What follows the last `####` on its line."""
    return _last_match(HASHES, text)


def last_words(text: str) -> Found | None:
    """What follows the last "answer is" or "answer:" on its line; of a number that goes on in prose, the number."""
    found = _last_match(WORDS, text)
    number = None if found is None or is_text(found.answer) else NUMBER_IN_PROSE.match(found.answer)
    return found if found is None or number is None else Found(number["alone"], found.start)


def last_box(text: str) -> Found | None:
    r"""What the last complete `\boxed{…}` holds."""
    start = len(text)
    while (start := text.rfind(BOXED, 0, start)) >= 0:
        depth = 1
        for end in range(start + len(BOXED), min(start + MAX_ANSWER_CHARACTERS, len(text))):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return Found(text[start + len(BOXED) : end], start)
    return None


def is_equal(reference: str, answer: str) -> bool:
    """Whether two answers are the same number or formula."""
    wanted, found = as_number(reference), as_number(answer)
    if wanted is not None and found is not None:
        return wanted.equals(found)
    if _bare(reference) == _bare(answer):
        return True
    if is_text(reference) or is_text(answer) or (is_word(reference) and is_word(answer)):
        return _words(reference) == _words(answer)
    if BASE.findall(reference) != BASE.findall(answer):
        return False
    if EXPLOSIVE.search(_formula(answer)) or _nesting(answer) > MAX_NESTING:
        return False
    parse, verify = _math_verify()
    return bool(within(MAX_ALGEBRA_S, lambda: verify(parse(reference), parse(answer))))


def is_text(text: str) -> bool:
    """Whether this can be compared with other answers only word for word."""
    return READ_AS_TEXT.fullmatch(_without_commands(text)) is not None


def is_word(text: str) -> bool:
    """Whether this has letters only, and enough of them to be a word, or the corners of a figure."""
    return WORD.fullmatch(_without_commands(_formula(text))) is not None


@functools.lru_cache(maxsize=4096)
def is_formula(text: str) -> bool:
    """Whether computer algebra can read the text."""
    parse, _ = _math_verify()
    return bool(parse(text))


@dataclass(frozen=True, slots=True)
class Number:
    """A plain number, and whether it was written in percent."""

    value: Fraction
    is_percent: bool

    def equals(self, other: "Number") -> bool:
        """Equal as written, or equal once one of them is taken as the percentage that it is."""
        if self.value == other.value:
            return True
        return self.is_percent != other.is_percent and self._share() == other._share()

    def _share(self) -> Fraction:
        return self.value / 100 if self.is_percent else self.value


def as_number(text: str) -> Number | None:
    """The number that the text is, with or without words for its unit; None where another number or a sign follows."""
    text = _without_commands(text)
    text = ASSIGNED.sub("", text.strip("$"), count=1) if ASSIGNED.match(text.strip("$")) else text
    match = NUMBER.fullmatch(text.removeprefix("$") if text.endswith("$") else text)
    if match is None:
        return None
    number, divisor = match["number"].replace(",", ""), match["divisor"] or "1"
    if len(number + divisor) > MAX_NUMBER_DIGITS or not divisor.strip("0"):
        return None
    value = Fraction(number) / int(divisor)
    return Number(-value if match["sign"] in ("-", "−") else value, "%" in (match["symbol"] or ""))


def _without_commands(text: str) -> str:
    """The text without spacing, emphasis, and the commands that mark words in a formula."""
    return TEXT_COMMAND.sub(r" \1", END_OF_EMPHASIS.sub("", SPACING.sub("", text))).strip(" \t\n*_`=")


def _words(text: str) -> str:
    """The text by which answers in words are compared."""
    return re.sub(r"\s+|(?<=[a-z])[.,]", "", _without_commands(_formula(text)).casefold())


def _last_match(mark: re.Pattern[str], text: str) -> Found | None:
    match = None
    for match in mark.finditer(text):  # noqa: B007 - the last one counts
        pass
    return None if match is None else Found(match["answer"].strip(), match.start())


def _nesting(text: str) -> int:
    """How deep brackets of any kind may lie within each other, if each second bar opens one that nothing closes."""
    steps = ({"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0) for character in text)
    return max(itertools.accumulate(steps), default=0) + text.count("|") // 2


def _bare(text: str) -> str:
    """The formula without white space and emphasis."""
    return re.sub(r"\s+", "", _formula(text)).strip("$*`.")


@functools.cache
def _math_verify() -> tuple[Callable[[str], list[object]], Callable[[object, object], bool]]:
    """math-verify's functions without its timeouts; loaded late, because it takes most of a second."""
    from math_verify import LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # It warns that its timeouts are off.
    formulas = [LatexExtractionConfig()]

    def parse_formula(text: str) -> list[object]:
        boxed = f"\\boxed{{{_formula(text)}}}"
        return list(parse(boxed, formulas, fallback_mode="no_fallback", parsing_timeout=None))

    return parse_formula, functools.partial(verify, timeout_seconds=None)


def _formula(text: str) -> str:
    """What the text has between the first delimiters of a formula; the whole text where it has none or several."""
    formula = LATEX.search(text)
    is_one_of_several = formula is not None and MORE.match(text, formula.end())
    inner = text if formula is None or is_one_of_several else formula.group(formula.lastgroup or 0)
    return inner.strip().rstrip(".")
