"""The built-in rewards: what all have in common, and the numbers of each."""

import math
from dataclasses import replace

import pytest
from pydantic import ValidationError

from reward_server.config import RewardServerConfig, RewardServiceConfig
from reward_server.function import RewardOptions
from reward_server.rewards import REWARDS
from reward_server.rewards.exact_match import ExactMatch
from reward_server.rewards.length_penalty import LengthPenalty, soft_overlong_penalty
from reward_server.rewards.required_format import RequiredFormat
from reward_server.scorer import FunctionScorer
from services.contracts.records import Failure, FailureCode, Message, Reward, RewardSample
from tests.reward_server.serving import make_sample

JUDGE = {"base_url": "https://judge.example/v1", "model": "m"}
OPTIONS: dict[str, dict[str, object]] = {
    "instruction_constraints": {"constraints": ({"kind": "words", "at_most": 10}, {"kind": "case", "case": "lower"})},
    "json_schema": {"fixed_schema": {"type": "integer"}},
    "judge_pairwise": {"judge": JUDGE},
    "judge_pointwise": {"judge": JUDGE, "criteria": [{"name": "truth", "meaning": "It is true."}]},
    "language": {"language": "en"},
    "regular_expression": {"pattern": r"\d"},
    "length_penalty": {"max_length": 100, "cache_length": 20},
    "required_format": {"preset": "think_answer"},
}
COMPLETIONS = ["", "7", "<think>a</think><answer>b</answer>", "word " * 5000, "𝔘 \u0000 \\boxed{", "\\boxed{7}"]


@pytest.mark.parametrize("name", [name for name in REWARDS if not name.startswith("judge_")])
async def test_every_built_in_keeps_its_word_on_any_completion(name: str) -> None:
    reward = REWARDS[name](**OPTIONS.get(name, {})).reward()
    scorer = FunctionScorer(reward, timeout_s=20.0, num_threads=1)
    samples = [
        RewardSample(id=text[:9], completion=text, token_ids=tuple(range(len(text))), reference={"answer": "7"})
        for text in COMPLETIONS
    ]

    outcomes = await scorer.score(samples)

    assert reward.name == name
    assert reward.minimum is not None and reward.maximum is not None
    for outcome in outcomes:
        assert isinstance(outcome, Reward)
        assert math.isfinite(outcome.value)
        assert reward.minimum <= outcome.value <= reward.maximum
    assert await scorer.score(samples) == outcomes
    assert len({outcome.value for outcome in outcomes if isinstance(outcome, Reward)}) > 1


@pytest.mark.parametrize("name", REWARDS)
def test_every_built_in_refuses_an_unknown_option_and_documents_its_own(name: str) -> None:
    options: type[RewardOptions] = REWARDS[name]
    with pytest.raises(ValidationError, match="unknown"):
        options(**OPTIONS.get(name, {}), unknown=1)
    assert all(field.description for field in options.model_fields.values())


@pytest.mark.parametrize("section", [RewardServiceConfig, RewardServerConfig])
def test_every_setting_is_documented(section: type[RewardServerConfig]) -> None:
    assert all(field.description for field in section.model_fields.values())


@pytest.mark.parametrize(
    ("length", "penalty"), [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (101, -1.0), (9999, -1.0)]
)
def test_the_soft_overlong_penalty_by_hand(length: int, penalty: float) -> None:
    # L_max = 100 and L_cache = 20: nothing up to 80, then one twentieth a token.
    assert soft_overlong_penalty(length, max_length=100, cache_length=20) == pytest.approx(penalty, abs=1e-12)


def test_the_length_penalty_counts_the_tokens_it_asks_for() -> None:
    penalty = LengthPenalty(max_length=10, cache_length=4)
    sample = RewardSample(id="a", completion="long text, few tokens", token_ids=tuple(range(8)))

    assert penalty.reward().needs_token_ids
    assert penalty.score(sample) == -0.5


def test_the_length_penalty_counts_characters_where_told() -> None:
    penalty = LengthPenalty(max_length=10, cache_length=4, unit="characters")

    assert not penalty.reward().needs_token_ids
    assert penalty.score(RewardSample(id="a", completion="ninechars")) == -0.75


def test_the_length_penalty_fails_a_sample_without_tokens() -> None:
    outcome = LengthPenalty(max_length=10, cache_length=4).score(RewardSample(id="a", completion="text"))
    assert isinstance(outcome, Failure) and outcome.code is FailureCode.INVALID_SAMPLE


def test_the_penalised_zone_fits_below_the_longest_completion() -> None:
    with pytest.raises(ValidationError, match="cache_length is 11, more than max_length"):
        LengthPenalty(max_length=10, cache_length=11)


@pytest.mark.parametrize(
    ("completion", "answer", "options", "value"),
    [
        ("85", "85", {}, 1.0),
        (" 85\n", "85", {}, 1.0),
        (" 85", "85", {"strip": False}, 0.0),
        ("85", 85, {}, 1.0),
        ("85.0", 85, {}, 0.0),
        ("Yes", "yes", {}, 0.0),
        ("Yes", "yes", {"ignore_case": True}, 1.0),
        ("", "85", {}, 0.0),
    ],
)
def test_exact_match(completion: str, answer: str | int, options: dict[str, bool], value: float) -> None:
    assert ExactMatch(**options).score(make_sample(completion=completion, answer=answer)) == value


def test_exact_match_reads_the_field_it_is_told() -> None:
    assert ExactMatch(reference_field="label").score(make_sample(completion="a", label="a")) == 1.0


def test_exact_match_fails_a_sample_without_reference() -> None:
    outcome = ExactMatch().score(make_sample(completion="a", label="a"))
    assert isinstance(outcome, Failure) and "reference.answer is None" in outcome.message


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("<think>a\nb</think>\n<answer>c</answer>\n", 1.0),
        ("<think></think><answer></answer>", 1.0),
        ("x <think>a</think><answer>c</answer>", 0.0),
        ("<think>a</think> so <answer>c</answer>", 0.0),
        ("<think>a</think><answer>c</answer> bye", 0.0),
        ("<answer>c</answer><think>a</think>", 0.0),
        ("<think>a</think><answer>c</answer><answer>d</answer>", 0.0),
        ("<think>a<think>b</think></think><answer>c</answer>", 0.0),
        ("<think>a</think><answer>c", 0.0),
        ("", 0.0),
    ],
)
def test_the_think_answer_form(completion: str, value: float) -> None:
    assert RequiredFormat(preset="think_answer").score(make_sample(completion=completion)) == value


def test_a_pattern_must_match_the_whole_completion() -> None:
    required = RequiredFormat(pattern=r"Answer: \d+.*")

    assert required.score(make_sample(completion="Answer: 42\nDone")) == 1.0
    assert required.score(make_sample(completion="The Answer: 42")) == 0.0


def test_a_pattern_that_is_sought_without_end_is_worth_nothing() -> None:
    assert RequiredFormat(pattern="(a|aa)+$").score(make_sample(completion="a" * 100 + "b")) == 0.0


@pytest.mark.parametrize("options", [{}, {"preset": "think_answer", "pattern": "a"}, {"pattern": "("}])
def test_a_form_is_given_once_and_compiles(options: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=r"either preset|no regular expression"):
        RequiredFormat(**options)


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("exact_match", "7"),
        ("math_answer", "it is 7"),
        ("regular_expression", "7"),
        ("json_schema", "7"),
        ("required_format", "<think>a</think><answer>7</answer>"),
    ],
)
async def test_verifiers_judge_what_the_policy_said_last_and_not_what_it_was_told(name: str, right: str) -> None:
    scorer = FunctionScorer(REWARDS[name](**OPTIONS.get(name, {})).reward(), timeout_s=20.0, num_threads=1)

    def dialogue(*texts: str) -> RewardSample:
        turns = (Message(role="tool" if number % 2 else "assistant", content=text) for number, text in enumerate(texts))
        return replace(make_sample(completion="".join(texts)), turns=tuple(turns))

    outcomes = await scorer.score([dialogue("what?", right, "no"), dialogue("what?", "no", right)])

    assert [outcome.value for outcome in outcomes if isinstance(outcome, Reward)] == [0.0, 1.0]
