"""The built-in reward `reward_model`: what it scores agrees with transformers alone, whatever company a sample has."""

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from reward_server.assembly import build_scorer
from reward_server.config import RewardServerConfig, RewardServiceConfig
from reward_server.reward_models.loaded import LoadedModel
from reward_server.reward_models.options import RewardModelOptions
from reward_server.reward_models.reading import step_spans
from reward_server.scorer import Scorer
from services.contracts.errors import UserError
from services.contracts.records import Failure, FailureCode, Reward, RewardSample
from services.contracts.reward_model import CanarySample, write_canary
from services.transport.reward_client import RewardClient
from services.transport.reward_conformance import check_service
from tests.reward_server.serving import serving
from tests.tiny import write_tiny_model, write_tiny_reward_model

PROMPT = "what is 2+2?"
COMPLETIONS = ["4", "it is 4.", "", "two and two is four " * 9, "5?", "no" * 40]


@pytest.fixture(scope="module")
def outcome_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_reward_model(tmp_path_factory.mktemp("outcome"), mean=0.5, std=2.0)


@pytest.fixture(scope="module")
def process_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_reward_model(tmp_path_factory.mktemp("process"), head="process", std=2.0)


def samples(completions: list[str] = COMPLETIONS) -> list[RewardSample]:
    return [RewardSample(id=str(i), prompt=PROMPT, completion=text) for i, text in enumerate(completions)]


def loaded(folder: Path, **options: object) -> LoadedModel:
    return LoadedModel(folder, RewardModelOptions(path=folder, device="cpu", **options))


def scored(model: LoadedModel, completions: list[str] = COMPLETIONS) -> list[Reward]:
    outcomes = model.score(samples(completions))
    assert all(isinstance(outcome, Reward) for outcome in outcomes), outcomes
    return outcomes  # type: ignore[return-value]  # just checked


@torch.no_grad()
def alone(folder: Path, text: str, model_class: type = AutoModelForSequenceClassification) -> torch.Tensor:
    """The logits of one text, by transformers and nothing else."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return model_class.from_pretrained(folder).eval()(**tokenizer(text, return_tensors="pt")).logits[0]  # type: ignore[no-any-return]


def test_the_score_is_the_normalised_logit_of_transformers_alone(outcome_model: Path) -> None:
    rewards = scored(loaded(outcome_model))

    for completion, reward in zip(COMPLETIONS, rewards, strict=True):
        assert reward.value == pytest.approx((alone(outcome_model, PROMPT + completion).item() - 0.5) / 2.0, abs=1e-5)
        assert reward.version == "a"
    assert len({reward.value for reward in rewards}) == len(COMPLETIONS)


@pytest.mark.parametrize("max_batch_tokens", [1, 64, 100_000])
def test_company_changes_no_score(outcome_model: Path, max_batch_tokens: int) -> None:
    model = loaded(outcome_model, max_batch_tokens=max_batch_tokens)
    each_alone = [scored(model, [completion])[0].value for completion in COMPLETIONS]

    for order in (COMPLETIONS, COMPLETIONS[::-1]):
        values = {text: reward.value for text, reward in zip(order, scored(model, order), strict=True)}
        assert [values[text] for text in COMPLETIONS] == pytest.approx(each_alone, abs=1e-5)


def test_bfloat16_is_near(outcome_model: Path) -> None:
    exact = [reward.value for reward in scored(loaded(outcome_model))]
    rough = [reward.value for reward in scored(loaded(outcome_model, dtype="bfloat16"))]

    assert rough == pytest.approx(exact, abs=0.1)
    assert rough != exact


def test_what_is_too_long_loses_its_beginning_and_says_so(tmp_path: Path) -> None:
    folder = write_tiny_reward_model(tmp_path, max_tokens=16)
    short, long = scored(loaded(folder), ["4", "it is surely 4 as all know"])

    assert (short.components["truncated"], long.components["truncated"]) == (0.0, 1.0)
    assert long.value == pytest.approx(alone(folder, "rely 4 as all know"[-16:]).item(), abs=1e-5)


def test_values_are_clipped_to_the_range_that_is_declared(outcome_model: Path) -> None:
    rewards = scored(loaded(outcome_model, minimum=-0.1, maximum=0.1))

    assert all(-0.1 <= reward.value <= 0.1 for reward in rewards)
    assert any(reward.components["unclipped"] != reward.value for reward in rewards)


def test_a_sample_without_any_text_fails_alone(outcome_model: Path) -> None:
    empty, other = loaded(outcome_model).score([RewardSample(id="0", completion=""), *samples(["4"])])

    assert isinstance(empty, Failure) and empty.code is FailureCode.INVALID_SAMPLE
    assert isinstance(other, Reward)


@pytest.mark.parametrize(
    ("completion", "spans"),
    [
        ("a\nbc\nd", [(0, 2), (2, 5), (5, 6)]),
        ("a\n\nb\n", [(0, 3), (3, 5)]),
        ("\na", [(0, 2)]),
        ("🚣🚣\n𝔘x", [(0, 3), (3, 5)]),
        ("\n\n", [(0, 2)]),
        ("", [(0, 0)]),
    ],
)
def test_steps_end_with_their_separators(completion: str, spans: list[tuple[int, int]]) -> None:
    assert list(step_spans(completion, "\n")) == spans


@pytest.mark.parametrize("aggregate", ["min", "mean", "last", "product"])
def test_a_process_head_scores_each_step_at_its_last_token(process_model: Path, aggregate: str) -> None:
    completion = "𝔘 so 2+2\nis 🚣4.\n\nyes"
    (reward,) = scored(loaded(process_model, aggregate=aggregate), [completion])

    logits = alone(process_model, PROMPT + completion, AutoModelForTokenClassification)[:, 0].double()
    tokenizer = AutoTokenizer.from_pretrained(process_model)
    lasts = [len(tokenizer(PROMPT + completion[:end]).input_ids) - 1 for end in (9, 17, 20)]
    raw = logits[lasts].tolist()
    scores = [logit / 2.0 for logit in raw]
    assert [(step.start, step.end) for step in reward.steps] == [(0, 9), (9, 17), (17, 20)]
    assert [step.value for step in reward.steps] == pytest.approx(scores, abs=1e-5)
    expected = {
        "min": min(scores),
        "mean": sum(scores) / 3,
        "last": scores[-1],
        "product": math.prod(1 / (1 + math.exp(-logit)) for logit in raw),
    }
    assert reward.value == pytest.approx(expected[aggregate], abs=1e-5)


def test_steps_that_were_cut_off_have_no_score(tmp_path: Path) -> None:
    folder = write_tiny_reward_model(tmp_path, head="process", max_tokens=12)
    (reward,) = scored(loaded(folder), ["one step\nand another one\nlast"])

    assert [(step.start, step.end) for step in reward.steps] == [(9, 25), (25, 29)]
    assert reward.components["truncated"] == 1.0


def test_steps_far_before_what_is_read_are_not_looked_for() -> None:
    completion = "a\n" * 1_000_000 + "b\n\nc"
    assert step_spans(completion, "\n", longest=5) == step_spans(completion, "\n")[-3:]


def test_an_empty_completion_of_a_process_head_has_a_value_and_no_step(process_model: Path) -> None:
    (reward,) = scored(loaded(process_model), [""])
    assert reward.steps == ()
    expected = alone(process_model, PROMPT, AutoModelForTokenClassification)[-1, 0].item() / 2.0
    assert reward.value == pytest.approx(expected, abs=1e-5)


def test_a_model_that_does_not_give_its_canary_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_reward_model(tmp_path)
    (right,) = scored(loaded(folder), ["4"])
    write_canary(folder, [CanarySample(prompt=PROMPT, completion="4", scores=(right.value,))])
    loaded(folder)
    write_tiny_reward_model(folder, seed=1)

    with pytest.raises(UserError, match=r"its trainer wrote .* are all files of one model"):
        loaded(folder)


@pytest.mark.parametrize(
    ("break_it", "error"),
    [
        (lambda folder: (folder / "reward_model.json").unlink(), "is no reward model"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: write_tiny_reward_model(folder, max_tokens=513), "max_tokens of the card is 513, .* reads 512"),
        (
            lambda folder: (folder / "reward_model.json").write_text('{"version": "a", "max_tokens": 9, "std": 0}'),
            "std",
        ),
        (write_tiny_model, "has no weights for score.weight"),
    ],
)
async def test_a_folder_that_is_no_whole_model_stops_the_server(
    tmp_path: Path, break_it: Callable[[Path], object], error: str
) -> None:
    folder = write_tiny_reward_model(tmp_path / "model")
    break_it(folder)
    with pytest.raises(UserError, match=error):
        await scorer(folder).start()


def scorer(folder: Path, **options: object) -> Scorer:
    service = RewardServiceConfig(name="reward_model", options={"path": str(folder), "device": "cpu", **options})
    return build_scorer([service], RewardServerConfig(port=0))


async def test_many_callers_get_the_scores_of_one_and_the_server_answers_meanwhile(outcome_model: Path) -> None:
    model = loaded(outcome_model)
    config = RewardServerConfig(port=0, drain_s=0.0)
    async with serving(scorer(outcome_model, max_batch_tokens=512), config) as address:
        client = RewardClient([address])
        scoring = asyncio.gather(*(client.score(samples()) for _ in range(32)))
        async with grpc.aio.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while not scoring.done():
                await stub.Check(health_pb2.HealthCheckRequest(), timeout=1.0)
        found = await scoring
        description = await client.describe()
        await client.close()

    expected = [reward.value for reward in scored(model)]
    for outcomes in found:
        assert [outcome.value for outcome in outcomes] == pytest.approx(expected, abs=1e-5)  # type: ignore[union-attr]
        assert {outcome.version for outcome in outcomes} == {"reward_model@a"}  # type: ignore[union-attr]
    assert (description.name, description.minimum) == ("reward_model", None)


async def test_a_served_process_model_passes_every_check_of_the_contract(process_model: Path) -> None:
    config = RewardServerConfig(port=0, drain_s=0.0, max_message_bytes=1 << 20)
    async with serving(scorer(process_model), config) as address:
        findings = [finding async for finding in check_service(address, reference={})]
    assert [finding.check for finding in findings if finding.verdict != "passed"] == ["drain"]  # Nobody may stop it.


def test_it_cannot_be_isolated(outcome_model: Path) -> None:
    service = RewardServiceConfig(name="reward_model", options={"path": str(outcome_model)}, isolate=True)
    with pytest.raises(UserError, match="cannot be isolated"):
        build_scorer([service], RewardServerConfig(port=0))
