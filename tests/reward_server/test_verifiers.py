"""Rewards that check a completion by rules: JSON schema, regular expression, language, repetition, constraints."""

import asyncio
import http.server
import threading
import time
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from reward_server.function import RewardOptions
from reward_server.ifeval import INSTRUCTIONS
from reward_server.rewards.instruction_constraints import InstructionConstraints
from reward_server.rewards.json_schema import JsonSchema
from reward_server.rewards.language import Language
from reward_server.rewards.regular_expression import RegularExpression
from reward_server.rewards.repetition import Repetition, compressible_share, repeated_share
from reward_server.scorer import FunctionScorer
from services.contracts.records import Failure, FailureCode, Json, Reward
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

SENTENCES = {
    "ar": "يجب أن نعرف ما هو الطريق إلى المدينة قبل أن نذهب",
    "bg": "Това е една от най-важните книги, които съм чел през тази година",
    "bn": "আমি প্রতিদিন সকালে বাজারে যাই এবং ফল কিনি",
    "cs": "Když jsem byl malý, bydleli jsme v domě, který stál na kraji města",
    "da": "Jeg har ikke set ham siden i går, men han kommer tilbage af sig selv",
    "de": "Wir haben das Ergebnis noch einmal geprüft, und es ist nicht falsch",
    "el": "Ο καθηγητής εξήγησε την άσκηση στους μαθητές",
    "en": "We have to divide the sum by two, and then the answer is ten",
    "es": "Primero hay que sumar los dos números y después dividir el resultado por tres",
    "fa": "این کتاب را از دوستم گرفتم و باید آن را به او برگردانم",
    "fi": "Hän ei ole vielä kotona, mutta minä tiedän, että hän tulee pian",
    "fr": "Il faut que nous trouvions la somme des nombres qui sont dans le tableau",
    "he": "אנחנו צריכים למצוא את התשובה לפני הערב",
    "hi": "यह किताब बहुत अच्छी है और मैं इसे हर दिन पढ़ता हूँ",
    "hu": "Az volt a kérdés, hogy ki lehet az, aki ezt nem tudja",
    "id": "Saya tidak tahu apakah mereka akan datang dengan kereta atau mobil",
    "it": "Non è vero che la somma di due numeri pari sia sempre più grande",
    "ja": "答えを求めるために、まず二つの数を足します",
    "ko": "우리는 내일 아침에 학교에 갈 것이다",
    "mr": "हे पुस्तक खूप चांगले आहे आणि मी ते रोज वाचतो",
    "nl": "Wij hebben het antwoord nog niet gevonden, maar dat is geen probleem",
    "no": "Jeg vet ikke hva det er, men noen av oss har sett det selv",
    "pl": "Nie wiem, czy to jest prawda, ale tak mówią wszyscy, którzy go znają",
    "pt": "Não há mais nada que eu possa fazer, mas ela também não sabe isso",
    "ro": "Nu este adevărat că acest număr este mai mare decât suma lor după împărțire",
    "ru": "Если мы разделим это число на два, то получится ответ, который был нужен",
    "sv": "Vi måste först räkna ut summan, och sedan kan vi inte göra något mer",
    "ta": "நாங்கள் நாளை காலை பள்ளிக்கு செல்வோம்",
    "te": "మేము రేపు ఉదయం పాఠశాలకు వెళ్తాము",
    "th": "เราต้องหาคำตอบก่อนเย็นนี้",
    "tr": "Bu kitap çok güzel ama ben onu daha önce hiç okumadım diye düşündüm",
    "uk": "Я не знаю, що це таке, але вони кажуть, що це може бути правда",
    "ur": "یہ کتاب بہت اچھی ہے اور میں اس کو روز پڑھتا ہوں",
    "vi": "Chúng tôi không có nhiều thời gian để tìm câu trả lời cho bài này",
    "zh": "我们先把两个数相加，然后再除以二",
}


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


# Instruction constraints


@pytest.mark.parametrize(
    ("constraint", "holds", "fails"),
    [
        ({"kind": "words", "exactly": 3}, "It's well-made, truly", "one two"),
        ({"kind": "words", "at_least": 2, "at_most": 3}, "one two", "one two three four"),
        ({"kind": "sentences", "exactly": 2}, 'It is 3.5 m. "Is it?"', "One. Two. Three"),
        ({"kind": "sentences", "exactly": 2}, "好。是！", "好。"),
        ({"kind": "paragraphs", "exactly": 2}, "a\nb\n \nc\n\n", "a\nb"),
        ({"kind": "paragraphs", "separator": "***", "exactly": 2}, "a *** b", "a\n\nb"),
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
        ({"kind": "includes", "texts": ["yes", "no"], "at_least": 1}, "My answer is no.", "Maybe"),
        ({"kind": "paragraph_starts", "paragraph": 2, "text": "then"}, 'First\n\n"Then, so', "Then\n\nthence"),
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
