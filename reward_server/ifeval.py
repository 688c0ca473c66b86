"""The instructions of IFEval (arXiv 2311.07911) and of data sets in its form, as constraints of ours.

A row of such a set names its instructions in `instruction_id_list`, and in `kwargs`, at the same place, what each one
asks for. It must not check anything itself. Words and sentences are counted in our way, so that a borderline answer may
be judged otherwise than by the paper's own checker.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from services.contracts.records import Json

Asked: TypeAlias = Mapping[str, Any]  # Any: JSON
FINAL_ANSWERS = ["My answer is yes.", "My answer is no.", "My answer is maybe."]


def constraints_of(instructions: Json, asked: Json) -> list[Json]:
    """The constraints of a row.

    Raises:
        ValueError: naming the instruction that is not known, or not complete.
    """
    if not isinstance(instructions, list) or not isinstance(asked, list) or len(instructions) != len(asked):
        raise ValueError("instruction_id_list and kwargs must be lists of one length")
    return [_constraint(str(name), values) for name, values in zip(instructions, asked, strict=True)]


def _constraint(instruction: str, asked: Json) -> Json:
    if instruction not in INSTRUCTIONS:
        raise ValueError(f"{instruction!r} is no instruction that is known: {', '.join(INSTRUCTIONS)}")
    try:
        return INSTRUCTIONS[instruction](asked if isinstance(asked, dict) else {})
    except (KeyError, TypeError) as error:
        raise ValueError(f"instruction {instruction!r} with {asked!r:.80}: {error} is missing or wrong") from error


def _bounds(number: int, relation: str) -> dict[str, Json]:
    return {"at_least": int(number)} if relation == "at least" else {"at_most": int(number) - 1}


def _counted(kind: str, number: str, relation: str) -> Callable[[Asked], Json]:
    return lambda asked: {"kind": kind, **_bounds(asked[number], asked[relation])}


INSTRUCTIONS: Mapping[str, Callable[[Asked], Json]] = {
    "change_case:capital_word_frequency": lambda asked: {
        "kind": "marks", "sort": "capital_word", **_bounds(asked["capital_frequency"], asked["capital_relation"]),
    },
    "change_case:english_capital": lambda asked: {"kind": "case", "case": "upper"},
    "change_case:english_lowercase": lambda asked: {"kind": "case", "case": "lower"},
    "combination:repeat_prompt": lambda asked: {"kind": "starts", "text": asked["prompt_to_repeat"]},
    "combination:two_responses": lambda asked: {
        "kind": "paragraphs", "separator": "******", "exactly": 2, "distinct": True,
    },
    "detectable_content:number_placeholders": lambda asked: {
        "kind": "marks", "sort": "placeholder", "at_least": asked["num_placeholders"],
    },
    "detectable_content:postscript": lambda asked: {
        "kind": "occurrences", "text": asked["postscript_marker"], "at_least": 1,
    },
    "detectable_format:constrained_response": lambda asked: {
        "kind": "includes", "texts": list(FINAL_ANSWERS), "at_least": 1,
    },
    "detectable_format:json_format": lambda asked: {"kind": "format", "format": "json"},
    "detectable_format:multiple_sections": lambda asked: {
        "kind": "occurrences", "text": asked["section_spliter"], "at_least": asked["num_sections"],
    },
    "detectable_format:number_bullet_lists": lambda asked: {
        "kind": "lines", "sort": "bullet", "exactly": asked["num_bullets"],
    },
    "detectable_format:number_highlighted_sections": lambda asked: {
        "kind": "marks", "sort": "highlight", "at_least": asked["num_highlights"],
    },
    "detectable_format:title": lambda asked: {"kind": "marks", "sort": "title", "at_least": 1},
    "keywords:existence": lambda asked: {"kind": "includes", "texts": asked["keywords"]},
    "keywords:forbidden_words": lambda asked: {"kind": "excludes", "texts": asked["forbidden_words"]},
    "keywords:frequency": lambda asked: {
        "kind": "occurrences", "text": asked["keyword"], **_bounds(asked["frequency"], asked["relation"]),
    },
    "keywords:letter_frequency": lambda asked: {
        "kind": "letter", "letter": asked["letter"], **_bounds(asked["let_frequency"], asked["let_relation"]),
    },
    "language:response_language": lambda asked: {"kind": "language", "language": asked["language"]},
    "length_constraints:nth_paragraph_first_word": lambda asked: {
        "kind": "paragraph_starts", "paragraph": asked["nth_paragraph"], "of": asked["num_paragraphs"],
        "text": asked["first_word"],
    },
    "length_constraints:number_paragraphs": lambda asked: {
        "kind": "paragraphs", "separator": "***", "exactly": asked["num_paragraphs"],
    },
    "length_constraints:number_sentences": _counted("sentences", "num_sentences", "relation"),
    "length_constraints:number_words": _counted("words", "num_words", "relation"),
    "punctuation:no_comma": lambda asked: {"kind": "format", "format": "no_comma"},
    "startend:end_checker": lambda asked: {"kind": "ends", "text": asked["end_phrase"]},
    "startend:quotation": lambda asked: {"kind": "format", "format": "quoted"},
}  # fmt: skip
