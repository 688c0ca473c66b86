"""Constraints on the form of an answer: each kind, in our words and in IFEval's, and what is no constraint."""

import pytest
from pydantic import ValidationError

from reward_server.ifeval import INSTRUCTIONS
from reward_server.rewards.instruction_constraints import InstructionConstraints
from services.contracts.records import Failure, FailureCode, Json, Reward
from tests.reward_server.sentences import SENTENCES
from tests.reward_server.serving import make_sample


@pytest.mark.parametrize(
    ("constraint", "holds", "fails"),
    [
        ({"kind": "words", "exactly": 3}, "It's well-made, truly", "one two"),
        ({"kind": "words", "at_least": 2, "at_most": 3}, "one two", "one two three four"),
        ({"kind": "sentences", "exactly": 2}, 'It is 3.5 m. "Is it?"', "One. Two. Three"),
        ({"kind": "sentences", "exactly": 2}, "好。是！", "好。"),
        ({"kind": "paragraphs", "exactly": 2}, "a\nb\n \nc\n\n", "a\nb"),
        ({"kind": "paragraphs", "separator": "***", "exactly": 2}, "a *** b", "a\n\nb"),
        ({"kind": "paragraphs", "exactly": 2, "distinct": True}, "yes\n\nno", "yes\n\nyes "),
        ({"kind": "lines", "exactly": 2}, "a\n\nb\n", "a"),
        ({"kind": "lines", "sort": "bullet", "exactly": 2}, "- a\n * b\n-c", "- a"),
        ({"kind": "lines", "sort": "numbered", "at_least": 2}, "1. a\n2) b", "1.5 a\n2. b"),
        ({"kind": "lines", "sort": "heading", "at_least": 1}, "## a", "#a"),
        ({"kind": "occurrences", "text": "art", "exactly": 2}, "Art is art, not a party", "art"),
        ({"kind": "letter", "letter": "z", "at_least": 2}, "Zanzibar", "zebra"),
        ({"kind": "marks", "sort": "highlight", "exactly": 2}, "*a* and **b c**", "* a * b"),
        ({"kind": "marks", "sort": "placeholder", "at_least": 1}, "Dear [name]", "Dear [] name"),
        ({"kind": "marks", "sort": "title", "exactly": 1}, "<<Ode>>", "<Ode>"),
        ({"kind": "marks", "sort": "capital_word", "at_most": 1}, "I am", "I AM"),
        ({"kind": "includes", "texts": ["red fox", "Den"]}, "A Red Fox in its den", "A red fox in a garden"),
        ({"kind": "excludes", "texts": ["very"]}, "everyone", "Very nice"),
        ({"kind": "starts", "text": "dear"}, "\n Dear all", "Oh dear"),
        ({"kind": "ends", "text": "Is there more?"}, "No. is there more?\n", "Is there more? No"),
        ({"kind": "ends", "text": "The end. "}, '"So it was. The end."\n', '"The end." So it was'),
        ({"kind": "ends", "text": 'he said "so"'}, 'Then he said "so"', "Then he said so"),
        ({"kind": "includes", "texts": ["yes", "no"], "at_least": 1}, "My answer is no.", "Maybe"),
        ({"kind": "paragraph_starts", "paragraph": 2, "text": "then"}, 'First\n\n"Then, so', "Then\n\nthence"),
        ({"kind": "paragraph_starts", "paragraph": 1, "of": 2, "text": "then"}, "Then\n\nso", "Then\n\nso\n\nso"),
        ({"kind": "language", "language": "de"}, SENTENCES["de"], SENTENCES["nl"]),
        ({"kind": "case", "case": "upper"}, "HELLO 7!", "Hello"),
        ({"kind": "case", "case": "lower"}, "hello 7!", "Hello"),
        ({"kind": "format", "format": "json"}, '```json\n{"a": 1}\n```', "{a: 1}"),
        ({"kind": "format", "format": "quoted"}, '"so"', '"so" he said'),
        ({"kind": "format", "format": "no_comma"}, "a b", "a, b"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["kind"],
)
def test_each_kind_of_constraint(constraint: Json, holds: str, fails: str) -> None:
    for completion, value in ((holds, 1.0), (fails, 0.0)):
        outcome = InstructionConstraints().score(make_sample(completion=completion, constraints=[constraint]))
        assert outcome == Reward(value=value, components={"share": value})


def test_constraints_of_options_and_prompt_count_together() -> None:
    brief: dict[str, Json] = {"kind": "words", "at_most": 3}
    named: Json = [{"kind": "case", "case": "lower"}, {"kind": "ends", "text": "."}]
    sample = make_sample(completion="So it is", constraints=named)

    share = InstructionConstraints(constraints=(brief,)).score(sample)
    every = InstructionConstraints(constraints=(brief,), value="all").score(sample)

    assert share == Reward(value=1 / 3, components={"share": 1 / 3})
    assert every == Reward(value=0.0, components={"share": 1 / 3})
    assert InstructionConstraints(constraints=(brief,)).score(make_sample(completion="so")) == Reward(
        value=1.0, components={"share": 1.0}
    )


@pytest.mark.parametrize(
    ("constraints", "words"),
    [
        ([{"kind": "wrods", "at_most": 3}], "it needs a kind, one of words, sentences"),
        ([{"kind": "words", "most": 3}], "most: Extra inputs are not permitted"),
        ([{"kind": "words"}], "give either exactly, or at_least and at_most"),
        ([{"kind": "words", "at_least": 3, "at_most": 2}], "more than at_most"),
        (["words"], "is no constraint"),
        ([], "no constraint is named"),
        (None, "a list of constraints is needed"),
    ],
)
def test_a_constraint_that_is_none_fails_its_sample(constraints: Json, words: str) -> None:
    outcome = InstructionConstraints().score(make_sample(completion="a", constraints=constraints))
    assert isinstance(outcome, Failure) and outcome.code is FailureCode.INVALID_SAMPLE
    assert words in outcome.message


IFEVAL: Json = {
    "num_words": 3, "relation": "less than", "keywords": ["hen"], "forbidden_words": ["fox"], "keyword": "hen",
    "frequency": 1, "letter": "h", "let_frequency": 1, "let_relation": "at least", "language": "en",
    "num_sentences": 2, "num_paragraphs": 1, "nth_paragraph": 1, "first_word": "the", "num_placeholders": 1,
    "postscript_marker": "P.S.", "num_bullets": 1, "num_highlights": 1, "section_spliter": "Section",
    "num_sections": 1, "prompt_to_repeat": "the", "end_phrase": "hen", "capital_frequency": 1,
    "capital_relation": "at least",
}  # fmt: skip


def test_every_instruction_of_ifeval_becomes_a_constraint() -> None:
    asked = [IFEVAL] * len(INSTRUCTIONS)
    sample = make_sample(completion="the hen", instruction_id_list=list(INSTRUCTIONS), kwargs=asked)
    outcome = InstructionConstraints().score(sample)
    held = ["keywords:existence", "keywords:forbidden_words", "keywords:letter_frequency", "startend:end_checker"]
    held += ["length_constraints:number_words", "length_constraints:number_sentences", "punctuation:no_comma"]
    held += ["length_constraints:number_paragraphs", "length_constraints:nth_paragraph_first_word"]
    held += ["combination:repeat_prompt", "change_case:english_lowercase", "language:response_language"]

    assert len(INSTRUCTIONS) == 25
    assert outcome == Reward(value=len(held) / 25, components={"share": len(held) / 25})
    for name, values in zip(INSTRUCTIONS, asked, strict=True):
        one = make_sample(completion="the hen", instruction_id_list=[name], kwargs=[values])
        assert InstructionConstraints().score(one) == Reward(
            value=float(name in held), components={"share": float(name in held)}
        ), name


@pytest.mark.parametrize(
    ("instructions", "kwargs", "holds", "fails"),
    [
        (["combination:two_responses"], [{}], "yes\n******\nno", "yes\n******\nyes"),
        (
            ["length_constraints:nth_paragraph_first_word"],
            [{"first_word": "so", "nth_paragraph": 2, "num_paragraphs": 2}],
            "a\n\nso it is",
            "a\n\nso it is\n\nb",
        ),
        (["startend:quotation", "startend:end_checker"], [{}, {"end_phrase": "Bye. "}], '"So. Bye."', '"Bye. So."'),
    ],
)
def test_an_instruction_of_ifeval_asks_for_all_that_it_says(
    instructions: Json, kwargs: Json, holds: str, fails: str
) -> None:
    for completion, is_kept in ((holds, True), (fails, False)):
        sample = make_sample(completion=completion, instruction_id_list=instructions, kwargs=kwargs)
        outcome = InstructionConstraints(value="all").score(sample)
        assert isinstance(outcome, Reward) and outcome.value == float(is_kept)


@pytest.mark.parametrize(
    ("instructions", "kwargs", "words"),
    [
        (["keywords:existence"], [{}], "'keywords' is missing or wrong"),
        (["keywords:existance"], [{}], "no instruction that is known"),
        (["keywords:existence"], [], "lists of one length"),
    ],
)
def test_a_row_of_ifeval_that_is_none_fails_its_sample(instructions: Json, kwargs: Json, words: str) -> None:
    sample = make_sample(completion="a", instruction_id_list=instructions, kwargs=kwargs)
    outcome = InstructionConstraints().score(sample)
    assert isinstance(outcome, Failure) and words in outcome.message


def test_constraints_among_the_options_are_checked_at_once() -> None:
    with pytest.raises(ValidationError, match="it needs a kind"):
        InstructionConstraints(constraints=({"kind": "wrods"},))
