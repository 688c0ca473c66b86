"""A policy that learns from preferences: on one rank, on two, resumed, and as whoever reads its export finds it."""

import math
import random
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ppo_learner.lora import is_adapter, without_adapters
from ppo_learner.preference_algorithms import PREFERENCE_ALGORITHMS
from ppo_learner.preference_config import PreferenceConfig
from ppo_learner.preference_training import PreferenceTask, PreferenceWork
from ppo_learner.supervised import SupervisedRank
from services.contracts.preference_example import PreferenceExample
from services.contracts.records import Demonstration
from tests.ppo_learner import numpy_preferences
from tests.ppo_learner.builders import VOCABULARY, outcomes_of_ranks, same_update
from tests.ppo_learner.supervised_ranks import start_supervised, train_straight_and_resumed
from tests.tiny import token_logprobs

GOOD_TOKEN = 2
REFERENCE_FREE = ("simpo", "orpo")


def behind(prompt: Sequence[int], completion: Sequence[int]) -> Demonstration:
    mask = [0] * len(prompt) + [1] * len(completion)
    return Demonstration(token_ids=array("i", [*prompt, *completion]), loss_mask=array("b", mask))


def make_pairs(seed: int, *, count: int = 9) -> list[PreferenceExample]:
    """Completions of 1 to 12 tokens; the chosen one begins with a token that the other does not have."""
    draw = random.Random(seed)

    def tokens(least: int, most: int) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(least, most))]

    examples = []
    for row in range(count):
        prompt = tokens(2, 6)
        completions = behind(prompt, [GOOD_TOKEN, *tokens(0, 11)]), behind(prompt, tokens(1, 12))
        reference = -draw.uniform(1, 9), -draw.uniform(1, 9)
        examples.append(PreferenceExample(row=row, completions=completions, reference=reference))
    return examples


def make_labels(seed: int, *, count: int = 9) -> list[PreferenceExample]:
    """One side of each pair with its label, and the other side of the next one as unrelated completion."""
    draw = random.Random(seed)
    pairs = make_pairs(seed, count=count)
    examples = []
    for pair, other in zip(pairs, [*pairs[1:], pairs[0]], strict=True):
        desirable = draw.random() < 0.5
        examples.append(
            PreferenceExample(
                row=pair.row,
                completions=(pair.completions[0 if desirable else 1],),
                desirable=desirable,
                unrelated=other.completions[1],
                reference=pair.reference,
            )
        )
    return examples


def make(settings: dict[str, Any], seed: int, *, count: int = 9) -> list[PreferenceExample]:
    return (make_labels if settings["algorithm"] == "kto" else make_pairs)(seed, count=count)


def start(
    model: Path, *, rank: int = 0, world_size: int = 1, port: int | None = None, **settings: Any
) -> SupervisedRank:
    learner = PreferenceConfig.model_validate({"lr": 1e-3} | settings)
    return start_supervised(PreferenceTask, model, learner, rank=rank, world_size=world_size, port=port)


def tokens_of(model: Any, completion: Demonstration) -> np.ndarray:
    """Logprobs of a completion's own tokens, by transformers alone."""
    logprobs = np.array(token_logprobs(model, completion.token_ids))
    return logprobs[np.array(completion.loss_mask[1:], dtype=bool)]


@pytest.mark.parametrize("budget", [20, 10_000])
def test_the_loss_is_that_of_each_pair_by_itself_however_pairs_are_batched(budget: int, tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    examples = make_pairs(0)
    both = [[tokens_of(model, completion) for completion in example.completions] for example in examples]
    rank = start(tiny_model, beta=0.3, nll_weight=0.5, max_tokens_per_micro_batch=budget)
    measured, answers = rank.evaluate(examples), rank.answers(examples)
    step = rank.step(examples).metrics
    rank.close()
    assert answers == pytest.approx([one.sum() for pair in both for one in pair], abs=1e-4)
    losses = [
        numpy_preferences.dpo(chosen, rejected, example.reference, 0.3) - 0.5 * chosen.mean()  # type: ignore[arg-type]
        for (chosen, rejected), example in zip(both, examples, strict=True)
    ]
    rewards = np.array(
        [
            [0.3 * (one.sum() - ref) for one, ref in zip(pair, e.reference, strict=True)]
            for pair, e in zip(both, examples, strict=True)
        ]
    )
    assert measured["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert measured["accuracy"] == pytest.approx(np.mean(rewards[:, 0] > rewards[:, 1]))
    assert measured["rewards/chosen"] == pytest.approx(rewards[:, 0].mean(), rel=1e-4)
    assert measured["rewards/margin"] == pytest.approx((rewards[:, 0] - rewards[:, 1]).mean(), rel=1e-3)
    assert measured["logprobs/rejected"] == pytest.approx(np.mean([pair[1].sum() for pair in both]), rel=1e-4)
    assert {name: step[name] for name in measured} == pytest.approx(measured, rel=1e-5)


def two_pairs(**settings: Any) -> PreferenceWork:
    """Chosen completions of 2 and 4 tokens, rejected ones of 1 and 2, and a reference without preference."""
    lengths = (2, 1), (4, 2)
    examples = [
        PreferenceExample(
            row=row, completions=(behind([1], [5] * chosen), behind([1], [6] * rejected)), reference=(-1.0, -1.0)
        )
        for row, (chosen, rejected) in enumerate(lengths)
    ]
    return PreferenceWork(examples, PreferenceConfig.model_validate(settings), packed=False)


WITH_LIKELIHOOD = [name for name, parts in PREFERENCE_ALGORITHMS.items() if "nll_weight" in parts.settings]


@pytest.mark.parametrize("algorithm", WITH_LIKELIHOOD)
def test_the_likelihood_beside_the_preferences_worked_by_hand_and_by_finite_differences(algorithm: str) -> None:
    # −log π of the chosen completions is 3 over 2 tokens and 1 over 4: ½·(1½ + ¼) beside the preferences.
    answers = torch.tensor([-3.0, -2.0, -1.0, -5.0], dtype=torch.float64, requires_grad=True)

    def loss(answers: torch.Tensor, weight: float = 0.5) -> torch.Tensor:
        return two_pairs(algorithm=algorithm, nll_weight=weight).sums(answers, (0, 1))[0]

    with_it, without = loss(answers), loss(answers, 0.0)
    assert (with_it - without).item() == pytest.approx(0.5 * 1.75)
    (gradient,) = torch.autograd.grad(with_it - without, answers)
    torch.testing.assert_close(gradient, torch.tensor([-0.25, 0.0, -0.125, 0.0], dtype=torch.float64))
    assert torch.autograd.gradcheck(loss, (answers,))


@pytest.mark.parametrize("budget", [20, 10_000])
def test_ktos_reference_point_is_of_the_whole_step_however_rows_are_batched(budget: int, tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    examples = [replace(example, reference=(-30.0, -40.0)) for example in make_labels(0)]
    own = [tokens_of(model, example.completions[0]) for example in examples]
    unrelated = [tokens_of(model, example.unrelated).sum() for example in examples if example.unrelated]
    point = numpy_preferences.kto_point(np.array(unrelated) + 40)
    assert point > 0
    rank = start(tiny_model, algorithm="kto", beta=0.05, undesirable_weight=0.7, max_tokens_per_micro_batch=budget)
    measured = rank.evaluate(examples)
    rank.close()
    labels = [bool(example.desirable) for example in examples]
    losses = [
        numpy_preferences.kto(one, -30.0, label, point, 0.05, (1.0, 0.7))
        for one, label in zip(own, labels, strict=True)
    ]
    rewards = np.array([0.05 * (one.sum() + 30) for one in own])
    right = (rewards > 0.05 * point) == np.array(labels)
    assert measured["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert measured["accuracy"] == pytest.approx(right.mean())
    assert measured["rewards/chosen"] == pytest.approx(rewards[labels].mean(), rel=1e-4)
    assert measured["rewards/rejected"] == pytest.approx(rewards[np.logical_not(labels)].mean(), rel=1e-4)


def test_a_step_without_undesirable_rows_has_no_mean_of_them(tiny_model: Path) -> None:
    rank = start(tiny_model, algorithm="kto")
    measured = rank.evaluate([example for example in make_labels(0) if example.desirable])
    rank.close()
    assert np.isnan(measured["rewards/rejected"])
    assert np.isfinite([measured["loss"], measured["rewards/chosen"], measured["accuracy"]]).all()


@pytest.mark.parametrize("algorithm", ["dpo", "cdpo", "robust_dpo", "ipo", "simpo", "orpo", "kto"])
def test_a_preference_is_learnt_and_holds_on_other_rows(algorithm: str, tiny_model: Path, tmp_path: Path) -> None:
    settings = {"algorithm": algorithm}
    rank = start(tiny_model, **settings)

    def with_reference(examples: list[PreferenceExample]) -> list[PreferenceExample]:
        if algorithm in REFERENCE_FREE:
            return [replace(example, reference=()) for example in examples]
        found = iter(rank.answers(examples))
        own = [tuple(next(found) for _ in example.completions) for example in examples]
        swapped = [replace(e, completions=(e.unrelated,)) if e.unrelated else e for e in examples]
        last = rank.answers(swapped) if algorithm == "kto" else []
        return [replace(e, reference=(*own[i], *last[i : i + 1])) for i, e in enumerate(examples)]

    steps = [with_reference(make(settings, seed, count=16)) for seed in range(12)]
    others = with_reference(make(settings, 99, count=48))
    first = rank.evaluate(others)
    for step in steps:
        rank.step(step)
    last = rank.evaluate(others)
    rank.export(tmp_path)
    rank.close()
    # Without a reference, or without a rival, a dozen steps do not bring every row over to its side.
    assert last["accuracy"] > (first["accuracy"] + 0.1 if algorithm in (*REFERENCE_FREE, "kto") else 0.85)
    assert last["loss"] < first["loss"]
    assert last["rewards/margin"] > first["rewards/margin"]
    again = start(tmp_path, **settings)
    assert again.evaluate(others) == pytest.approx(last, rel=1e-4)
    again.close()


def test_with_adapters_the_reference_is_the_policy_without_them_and_nothing_else_moves(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    examples = [
        replace(example, reference=tuple(float(tokens_of(model, one).sum()) for one in example.completions))
        for example in make_pairs(0)
    ]
    rank = start(tiny_model, algorithm="dpo", lr=1e-2, lora={"rank": 4})
    before = {name: weight.clone() for name, weight in rank._network.full_parameters()}
    first = rank.step(examples).metrics
    last = [rank.step(examples).metrics for _ in range(5)][-1]
    after = {name: weight.clone() for name, weight in rank._network.full_parameters()}
    with without_adapters(rank._network.module):
        reference = rank.answers(examples)
    final = rank.evaluate(examples)
    rank.export(tmp_path)
    rank.close()
    # Policy and reference are one at first: −log σ(0).
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4) and first["rewards/margin"] == pytest.approx(
        0, abs=1e-4
    )
    assert last["loss"] < 0.5 * math.log(2) and last["rewards/margin"] > 0
    assert reference == pytest.approx([logprob for example in examples for logprob in example.reference], abs=1e-4)
    assert {name for name in after if not torch.equal(after[name], before[name])} == set(filter(is_adapter, after))
    merged = start(tmp_path, algorithm="dpo")
    assert merged.evaluate(examples) == pytest.approx(final, rel=1e-3)
    merged.close()


CASES: dict[str, dict[str, Any]] = {
    "pairs": {"algorithm": "dpo", "max_tokens_per_micro_batch": 64},
    "pairs_zero_2": {"algorithm": "dpo", "max_tokens_per_micro_batch": 64, "zero_stage": 2},
    "labels": {"algorithm": "kto"},
    "labels_zero_3": {"algorithm": "kto", "zero_stage": 3, "max_tokens_per_micro_batch": 40, "packing": "on"},
    "odds": {"algorithm": "orpo"},
    "odds_zero_0": {"algorithm": "orpo", "max_tokens_per_micro_batch": 40, "packing": "on"},
    "pairs_zero_1_shared": {"algorithm": "dpo", "num_ranks": 2, "sequence_parallel": 2, "zero_stage": 1},
}


def train_and_resume(name: str, model: Path, folder: Path, *, rank: int, world_size: int, ports: list[int]) -> None:
    train_straight_and_resumed(
        lambda port: start(model, rank=rank, world_size=world_size, port=port, **CASES[name]),
        lambda seed, count: make(CASES[name], seed, count=count),
        make(CASES[name], 9),
        folder,
        rank=rank,
        ports=ports,
    )


@pytest.fixture(scope="module")
def outcomes(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """For each case what every rank found."""
    folder = tmp_path_factory.mktemp("preference_ranks")
    return outcomes_of_ranks(CASES, train_and_resume, tiny_model, folder, deadline_s=120)


@pytest.mark.parametrize("name", [name for name in CASES if "zero" in name])
def test_two_ranks_and_other_micro_batches_train_and_report_the_same(
    name: str, outcomes: dict[str, list[dict[str, Any]]]
) -> None:
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
