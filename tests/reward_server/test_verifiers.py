"""Rewards that check by rules (JSON schema, regular expression, language, repetition), and what hostile text costs."""

import asyncio
import http.server
import threading
import time
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from reward_server.function import RewardOptions
from reward_server.rewards.instruction_constraints import InstructionConstraints
from reward_server.rewards.json_schema import JsonSchema
from reward_server.rewards.language import Language
from reward_server.rewards.regular_expression import RegularExpression
from reward_server.rewards.repetition import Repetition, compressible_share, repeated_share
from reward_server.rewards.required_format import RequiredFormat
from reward_server.scorer import FunctionScorer
from services.contracts.records import Failure, FailureCode, Json, Reward
from tests.reward_server.sentences import SENTENCES
from tests.reward_server.serving import make_sample

PERSON: Json = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[A-Z]"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}
MEGABYTE = 1_000_000
HOSTILE = {
    "one word": "a" * MEGABYTE,
    "many words": "a b, c. " * (MEGABYTE // 8),
    "full stops": "." * MEGABYTE,
    "quotes": ".\"')" * (MEGABYTE // 4),
    "spaces": " \t\n" * (MEGABYTE // 3),
    "stars": "*a " * (MEGABYTE // 3),
    "brackets": "[<<" * (MEGABYTE // 3),
    "deep JSON": "[" * (MEGABYTE // 2) + "]" * (MEGABYTE // 2),
    "long JSON": "[" + "[]," * (MEGABYTE // 3) + "[]]",
    "huge number": "9" * MEGABYTE,
    "fences": "```\n" * (MEGABYTE // 4),
    "control characters": "\x00\x1b\ufeff\u202e\x85" * (MEGABYTE // 5),
    "marks": "a" + "\u0301" * MEGABYTE,
    "kanji": "漢" * MEGABYTE,
}
EVERY_KIND: list[Json] = [
    *({"kind": kind, "at_most": 3} for kind in ("words", "sentences", "paragraphs")),
    *({"kind": "lines", "sort": sort, "at_most": 3} for sort in ("any", "bullet", "numbered", "heading")),
    *({"kind": "marks", "sort": sort, "at_most": 3} for sort in ("highlight", "placeholder", "title", "capital_word")),
    *({"kind": "format", "format": form} for form in ("json", "quoted", "no_comma")),
    *({"kind": kind, "texts": ["aaaab", "a b"]} for kind in ("includes", "excludes")),
    *({"kind": kind, "text": "aaaab"} for kind in ("starts", "ends")),
    {"kind": "occurrences", "text": "aaaab", "at_most": 3},
    {"kind": "letter", "letter": "a", "at_most": 3},
    {"kind": "paragraph_starts", "paragraph": 1, "text": "aaaab"},
    {"kind": "case", "case": "upper"},
]
STRICT: list[RewardOptions] = [
    JsonSchema(fixed_schema={"type": "array", "uniqueItems": True, "items": {"pattern": "^(a+)+$"}}),
    RegularExpression(pattern=r"(?s)(.|..)+$(?<!.)", timeout_s=0.2),
    RequiredFormat(pattern=r"(.|..)+$(?<!.)"),
    Language(language="en"),
    Repetition(),
    Repetition(unit="characters"),
    Repetition(measure="compression"),
    InstructionConstraints(constraints=tuple(EVERY_KIND)),
]


@pytest.mark.parametrize("options", STRICT, ids=lambda options: type(options).__name__)
def test_a_hostile_completion_is_worth_a_number_in_bounded_time(options: RewardOptions) -> None:
    reward = options.reward()
    for name, completion in HOSTILE.items():
        started = time.process_time()
        outcome = reward.score(make_sample(completion=completion))  # type: ignore[arg-type]  # none is batched
        assert time.process_time() - started < 4.0, name
        value = outcome.value if isinstance(outcome, Reward) else outcome
        assert isinstance(value, float), name
        assert reward.minimum is not None and reward.maximum is not None
        assert reward.minimum <= value <= reward.maximum


# JSON schema


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ('{"name": "Ada", "age": 36}', 1.0),
        ('{"name": "ada"}', 0.0),
        ('{"name": "Ada", "age": -1}', 0.0),
        ('{"name": "Ada", "city": "Turin"}', 0.0),
        ('{"name": "Ada"', 0.0),
        ('Here it is:\n```json\n{"name": "Ada"}\n```\nDone.', 1.0),
        ('```json\n{"name": "ada"}\n```\n```json\n{"name": "Ada"}\n```', 1.0),
        ('```json\n{"name": "Ada"}\n```\n```python\n{}\n```', 1.0),
        ('```json\n{"name": "Ada"}', 0.0),
        ("Ada", 0.0),
        ("", 0.0),
    ],
)
def test_json_is_held_against_the_schema(completion: str, value: float) -> None:
    assert JsonSchema().score(make_sample(completion=completion, schema=PERSON)) == value


def test_a_fence_can_be_required_and_json_is_read_strictly() -> None:
    assert JsonSchema(fixed_schema={}, require_fence=True).score(make_sample(completion="{}")) == 0.0
    assert JsonSchema(fixed_schema={}).score(make_sample(completion="{}")) == 1.0
    assert JsonSchema(fixed_schema={}).score(make_sample(completion="NaN")) == 0.0
    assert JsonSchema(fixed_schema={}, max_characters=3).score(make_sample(completion="[11]")) == 0.0


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """A web server that offers a schema; gives its address, and what it was asked for."""
    asked: list[str] = []

    class Schemas(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Schemas) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/schema.json", asked
        server.shutdown()


def test_a_schema_elsewhere_is_never_fetched(listener: tuple[str, list[str]]) -> None:
    address, asked = listener
    for reference in (address, "file:///etc/hostname"):
        outcome = JsonSchema().score(make_sample(completion="{}", schema={"$ref": reference}))
        assert isinstance(outcome, Failure) and outcome.code is FailureCode.INVALID_SAMPLE
        assert reference in outcome.message
    assert asked == []


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"pattern": "("}, "{", 3, None, {"pattern": "(?=a)"}])
def test_a_schema_that_is_none_fails_its_sample(schema: Json) -> None:
    outcome = JsonSchema().score(make_sample(completion="{}", schema=schema))
    assert isinstance(outcome, Failure) and outcome.code is FailureCode.INVALID_SAMPLE


def test_a_fixed_schema_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(ValidationError, match="is no schema that can be used"):
        JsonSchema(fixed_schema={"type": "nonsense"})


# Regular expression


@pytest.mark.parametrize(
    ("options", "completion", "value"),
    [
        ({"pattern": r"\d+"}, "42", 1.0),
        ({"pattern": r"\d+"}, "42!", 0.0),
        ({"pattern": r"\d+", "where": "anywhere"}, "it is 42!", 1.0),
        ({"pattern": r"\d+", "where": "anywhere", "forbid": True}, "it is 42!", 0.0),
        ({"pattern": r"\d+", "where": "anywhere", "forbid": True}, "none", 1.0),
        ({"pattern": "(?is)yes.no"}, "YES\nNO", 1.0),
    ],
)
def test_a_regular_expression(options: dict[str, object], completion: str, value: float) -> None:
    assert RegularExpression(**options).score(make_sample(completion=completion)) == value


def test_each_sample_may_bring_its_expression() -> None:
    assert RegularExpression().score(make_sample(completion="abc", pattern="a.c")) == 1.0
    for wrong in ("(", 3, None):
        outcome = RegularExpression().score(make_sample(completion="abc", pattern=wrong))
        assert isinstance(outcome, Failure) and "no regular expression" in outcome.message
    with pytest.raises(ValidationError, match="no regular expression"):
        RegularExpression(pattern="(")


@pytest.mark.parametrize("forbid", [False, True])
async def test_an_expression_that_never_ends_is_worth_nothing_and_holds_up_nobody(forbid: bool) -> None:
    options = RegularExpression(pattern="(a|aa)+$", timeout_s=0.3, forbid=forbid)
    scorer = FunctionScorer(options.reward(), timeout_s=20.0, num_threads=4)
    hostile = asyncio.create_task(scorer.score([make_sample(index, completion="a" * 64 + "b") for index in range(3)]))
    num_honest = 0
    while not hostile.done():
        assert await scorer.score([make_sample(completion="aa")]) == [Reward(value=float(not forbid))]
        num_honest += 1

    assert await hostile == [Reward(value=0.0)] * 3
    assert num_honest > 10, "honest completions waited for the hostile ones"


# Language


def test_each_language_is_told_from_all_others() -> None:
    values = {
        (wanted, spoken): Language(language=wanted).score(make_sample(completion=sentence))
        for wanted in SENTENCES
        for spoken, sentence in SENTENCES.items()
    }
    right = [values[language, language] == 1.0 for language in SENTENCES]
    wrong = [value == 0.0 for (wanted, spoken), value in values.items() if wanted != spoken]
    assert sum(right) / len(right) == 1.0
    assert sum(wrong) / len(wrong) > 0.99


def test_a_switch_of_language_costs_its_share() -> None:
    mixed = f"{SENTENCES['en']} {SENTENCES['zh']}"
    value = Language(reference_field="lang").score(make_sample(completion=mixed, lang="en"))
    assert isinstance(value, float) and 0.6 < value < 0.9
    assert Language(language="en").score(make_sample(completion="x = 7")) == 0.5
    assert Language(language="en").score(make_sample(completion="")) == 0.5


def test_a_language_must_be_one_that_is_told_apart() -> None:
    with pytest.raises(ValidationError, match="'tlh' is not among"):
        Language(language="tlh")
    outcome = Language().score(make_sample(completion="a", language="tlh"))
    assert isinstance(outcome, Failure) and "reference.language is 'tlh'" in outcome.message


# Repetition


def test_repetition_by_hand() -> None:
    # "a b a b a b" has the bigrams ab ba ab ba ab: 2 distinct of 5.
    assert repeated_share(["a", "b", "a", "b", "a", "b"], 2) == pytest.approx(0.6)
    assert repeated_share("ababab", 2) == pytest.approx(0.6)
    assert repeated_share(["a"], 2) == 0.0
    outcome = Repetition(ngram_size=2, allowed=0.2).score(make_sample(completion="a b a b a b"))
    assert outcome.value == pytest.approx(-(0.6 - 0.2) / 0.8)
    assert outcome.components == {"share": pytest.approx(0.6)}


def test_ordinary_text_costs_nothing_and_a_loop_nearly_everything() -> None:
    ordinary = " ".join(SENTENCES[name] for name in ("de", "en", "es", "fr", "it"))
    for options in (Repetition(), Repetition(measure="compression")):
        assert options.score(make_sample(completion=ordinary)).value == 0.0
        assert options.score(make_sample(completion="I am sure that it is. " * 500)).value < -0.9
    assert compressible_share("") == compressible_share("ab") == 0.0


def test_options_of_one_measure_are_refused_with_the_other() -> None:
    with pytest.raises(ValidationError, match="compression has neither"):
        Repetition(measure="compression", ngram_size=2)
