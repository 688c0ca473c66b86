"""A reward model under training: on one rank, on two, resumed, and as whoever reads its export finds it."""

import random
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, BertConfig

from ppo_learner.reward_config import RewardModelConfig
from ppo_learner.reward_training import RewardModelTask
from ppo_learner.supervised import SupervisedRank
from services.contracts.reward_example import RewardExample
from services.contracts.settings import ModelConfig
from tests.ppo_learner import numpy_reference
from tests.ppo_learner.builders import VOCABULARY, outcomes_of_ranks, same_update
from tests.ppo_learner.supervised_ranks import start_supervised, train_straight_and_resumed
from tests.tiny import tiny_tokenizer

GOOD_TOKEN = 2


def write_tiny_encoder(folder: Path) -> Path:
    """The shape of an encoder of a few thousand parameters, without weights."""
    BertConfig(
        vocab_size=VOCABULARY + 2,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    ).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def random_ids(draw: random.Random, *, good: bool = False) -> array:  # type: ignore[type-arg]  # not at run time
    ids = [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(3, 14))]
    return array("i", [*ids, *([GOOD_TOKEN] * good), draw.randrange(3, VOCABULARY)])


def make_lists(seed: int, *, count: int = 10, size: int = 2) -> list[RewardExample]:
    """Rankings of which the best has a token that the others do not have."""
    draw = random.Random(seed)
    return [
        RewardExample(
            row=row,
            sequences=tuple(random_ids(draw, good=place == 0) for place in range(size)),
            positions=array("i"),
            targets=(draw.random(), *[0.0] * (size - 1)),
            completion_lengths=(1,) * size,
        )
        for row in range(count)
    ]


def make_steps(seed: int, *, count: int = 10) -> list[RewardExample]:
    """Texts with one to three labelled steps."""
    draw = random.Random(seed)
    examples = []
    for row in range(count):
        ids = random_ids(draw)
        positions = sorted(draw.sample(range(len(ids)), draw.randint(1, 3)))
        examples.append(
            RewardExample(
                row=row,
                sequences=(ids,),
                positions=array("i", positions),
                targets=tuple(draw.random() for _ in positions),
                completion_lengths=(1,),
            )
        )
    return examples


def learner_of(settings: dict[str, Any]) -> RewardModelConfig:
    return RewardModelConfig.model_validate({"lr": 1e-2} | settings)


def start(
    model: Path, *, rank: int = 0, world_size: int = 1, port: int | None = None, **settings: Any
) -> SupervisedRank:
    return start_supervised(RewardModelTask, model, learner_of(settings), rank=rank, world_size=world_size, port=port)


@torch.no_grad()
def scores_of_export(folder: Path, examples: Sequence[RewardExample], *, of_steps: bool) -> list[list[float]]:
    """Each text by itself through the exported folder, as someone else would."""
    kind = AutoModelForTokenClassification if of_steps else AutoModelForSequenceClassification
    classifier = kind.from_pretrained(folder).eval()
    found = []
    for example in examples:
        logits = [classifier(input_ids=torch.tensor([list(ids)])).logits for ids in example.sequences]
        found.append([float(logits[0][0, at, 0]) for at in example.positions] or [float(each[0, 0]) for each in logits])
    return found


@pytest.mark.parametrize("backbone", ["decoder", "encoder"])
def test_scores_and_loss_are_those_of_the_export_however_texts_are_batched(
    backbone: str, tiny_model: Path, tmp_path: Path
) -> None:
    model = tiny_model if backbone == "decoder" else write_tiny_encoder(tmp_path / "shape")
    examples = make_lists(0, size=3)
    for budget in (30, 10_000):
        settings = {"objective": "plackett_luce", "max_tokens_per_micro_batch": budget, "dropout": 0.3}
        rank = start(model, from_scratch=backbone == "encoder", **settings)
        rank.step(make_lists(1, size=3))
        scores, measured = rank.answers(examples), rank.evaluate(examples)
        rank.export(tmp_path / f"export_{budget}")
        rank.step(make_lists(2, size=3))
        rank.read(ModelConfig(path=str(tmp_path / f"export_{budget}"), dtype="float32"), learner_of(settings))
        assert rank.answers(examples) == pytest.approx(scores, abs=1e-6)
        rank.close()
        expected = scores_of_export(tmp_path / f"export_{budget}", examples, of_steps=False)
        assert scores == pytest.approx([score for one in expected for score in one], abs=2e-5)
        losses = [numpy_reference.plackett_luce(np.array(one), np.array([])) for one in expected]
        assert measured["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
        in_order = [np.mean([one[0] > one[1], one[0] > one[2], one[1] > one[2]]) for one in expected]
        assert measured["accuracy"] == pytest.approx(np.mean(in_order))


def test_steps_are_scored_at_their_tokens_and_each_counts_the_same(tiny_model: Path, tmp_path: Path) -> None:
    examples = make_steps(0)
    rank = start(tiny_model, objective="process", max_tokens_per_micro_batch=40)
    rank.step(make_steps(1))
    scores, measured = rank.answers(examples), rank.evaluate(examples)
    rank.export(tmp_path)
    rank.close()
    expected = scores_of_export(tmp_path, examples, of_steps=True)
    assert scores == pytest.approx([score for one in expected for score in one], abs=2e-5)
    total = sum(
        numpy_reference.cross_entropy(np.array(one), np.array(example.targets))
        for one, example in zip(expected, examples, strict=True)
    )
    assert measured["loss"] == pytest.approx(total / len(scores), rel=1e-4)


def test_a_preference_is_learnt_from_scratch_and_holds_on_other_pairs(tmp_path: Path) -> None:
    rank = start(write_tiny_encoder(tmp_path / "shape"), from_scratch=True, lr=3e-3)
    assert not any(rank.answers(make_lists(99)))
    reports = [rank.step(make_lists(step, count=32)) for step in range(20)]
    other = rank.evaluate(make_lists(99, count=64))
    rank.close()
    assert reports[-1].metrics["loss"] < reports[0].metrics["loss"] / 2
    assert other["accuracy"] > 0.9


CASES: dict[str, dict[str, Any]] = {
    "pairs": {"lr": 1e-3, "max_tokens_per_micro_batch": 64},
    "pairs_zero_2": {"lr": 1e-3, "max_tokens_per_micro_batch": 64, "zero_stage": 2},
    "steps": {"lr": 1e-3, "objective": "process"},
    "steps_zero_3": {"lr": 1e-3, "objective": "process", "zero_stage": 3},
    "dropout": {"lr": 1e-3, "dropout": 0.3},
    "dropout_zero_0": {"lr": 1e-3, "dropout": 0.3},
}


def train_and_resume(name: str, model: Path, folder: Path, *, rank: int, world_size: int, ports: list[int]) -> None:
    make = make_steps if name.startswith("steps") else make_lists
    train_straight_and_resumed(
        lambda port: start(model, rank=rank, world_size=world_size, port=port, **CASES[name]),
        lambda seed, count: make(seed, count=count),
        make(9),
        folder,
        rank=rank,
        ports=ports,
    )


@pytest.fixture(scope="module")
def outcomes(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """For each case what every rank found."""
    folder = tmp_path_factory.mktemp("reward_ranks")
    return outcomes_of_ranks(CASES, train_and_resume, tiny_model, folder, deadline_s=120)


@pytest.mark.parametrize("name", ["pairs_zero_2", "steps_zero_3"])
def test_two_ranks_train_and_report_what_one_does(name: str, outcomes: dict[str, list[dict[str, Any]]]) -> None:
    (alone,) = outcomes[name.split("_zero_")[0]]
    for rank in outcomes[name]:
        assert same_update(alone["start"], alone["weights"], rank["weights"])
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        assert rank["answers"] == pytest.approx(alone["answers"], abs=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_is_the_same_to_the_bit(name: str, outcomes: dict[str, list[dict[str, Any]]]) -> None:
    for rank in outcomes[name]:
        assert all(torch.equal(weight, rank["resumed"][key]) for key, weight in rank["weights"].items())
        assert rank["losses"][2:] == rank["losses_resumed"]


def test_dropout_differs_between_ranks_and_from_none(outcomes: dict[str, list[dict[str, Any]]]) -> None:
    assert outcomes["dropout"][0]["losses"] != pytest.approx(outcomes["pairs"][0]["losses"], rel=1e-4)
    assert outcomes["dropout_zero_0"][0]["losses"] != pytest.approx(outcomes["dropout"][0]["losses"], rel=1e-4)
