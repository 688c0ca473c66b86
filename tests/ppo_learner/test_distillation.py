"""Learning a teacher's distributions: the formulas, the head in pieces, whole steps, and one rank against two."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from ppo_learner.distillation import DistillationTask
from ppo_learner.distillation_head import DistillationHead
from ppo_learner.divergences import DIVERGENCES, forward_kl, reverse_kl
from ppo_learner.supervised_config import SupervisedConfig
from ppo_learner.teacher_config import TeacherConfig
from ppo_learner.token_head import OutputLayer
from tests.ppo_learner import numpy_reference
from tests.ppo_learner.builders import outcomes_of_ranks, same_update
from tests.ppo_learner.largest_tensor import LargestTensor
from tests.ppo_learner.supervised_ranks import start_supervised
from tests.ppo_learner.test_supervised import make_demonstrations
from tests.tiny import write_tiny_model

STATES = torch.randn(12, 8, generator=torch.Generator().manual_seed(1))
THEIRS = torch.randn(12, 6, generator=torch.Generator().manual_seed(2))
TARGETS = torch.arange(12)


def random_table(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_heads(*, teacher_size: int = 30, **teacher: Any) -> tuple[DistillationHead, OutputLayer]:
    torch.manual_seed(0)
    config = TeacherConfig(path="teacher", **teacher)
    student = DistillationHead(nn.Linear(8, 30, bias=False), SimpleNamespace(), config)
    return student, OutputLayer(nn.Linear(6, teacher_size, bias=False), SimpleNamespace(logit_scale=0.5))


def start(student: Path, beside: Path, *, rank: int = 0, world_size: int = 1, port: int = 0, **settings: Any) -> Any:
    own = {"path": str(beside)} | settings.pop("teacher", {})
    learner = SupervisedConfig.model_validate({"lr": 1e-2, "teacher": own} | settings)
    return start_supervised(DistillationTask, student, learner, rank=rank, world_size=world_size, port=port)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wider model of the same tokenizer, with rows of padding in its vocabulary."""
    folder = tmp_path_factory.mktemp("teacher")
    write_tiny_model(folder, seed=7, hidden_size=96)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(64)
    model.save_pretrained(folder)
    return folder


def test_both_directions_of_a_hand_worked_pair() -> None:
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()
    # 0.75 ln 1.5 − 0.25 ln 2, and (ln 2 − ln 1.5) / 2.
    assert forward_kl(student, teacher).item() == pytest.approx(0.1308120, abs=1e-6)
    assert reverse_kl(student, teacher).item() == pytest.approx(0.1438410, abs=1e-6)


@pytest.mark.parametrize("direction", DIVERGENCES)
def test_a_divergence_agrees_with_numpy_and_with_finite_differences(direction: str) -> None:
    logits, theirs = random_table(0).requires_grad_(), random_table(1).log_softmax(dim=-1)
    found = DIVERGENCES[direction](logits.log_softmax(dim=-1), theirs)
    q, p = np.exp(numpy_reference.log_softmax(logits.detach().numpy())), theirs.exp().numpy()
    pairs = zip(p, q, strict=True) if direction == "forward" else zip(q, p, strict=True)
    np.testing.assert_allclose(found.detach().numpy(), [numpy_reference.kl(*pair) for pair in pairs], rtol=1e-10)
    assert torch.autograd.gradcheck(lambda z: DIVERGENCES[direction](z.log_softmax(dim=-1), theirs), logits)


@pytest.mark.parametrize("direction", DIVERGENCES)
def test_a_divergence_is_positive_and_its_descent_leads_to_the_teacher(direction: str) -> None:
    theirs = random_table(1).log_softmax(dim=-1)
    assert torch.all(DIVERGENCES[direction](theirs, theirs).abs() < 1e-12)
    logits, apart = random_table(0), []
    for _ in range(50):
        logits.requires_grad_()
        divergence = DIVERGENCES[direction](logits.log_softmax(dim=-1), theirs)
        apart.append(divergence.detach())
        (gradient,) = torch.autograd.grad(divergence.sum(), logits)
        logits = logits.detach() - gradient
    assert torch.all(apart[0] > 0)
    assert torch.all(apart[-1] < 0.1 * apart[0])


@pytest.mark.parametrize("teacher_size", [30, 28, 40])
@pytest.mark.parametrize("direction", DIVERGENCES)
def test_the_head_compares_tempered_distributions_over_what_both_know(direction: str, teacher_size: int) -> None:
    student, teacher = make_heads(teacher_size=teacher_size, direction=direction, temperature=2.0)
    logprobs, divergences = student(STATES, TARGETS, THEIRS, teacher)
    ours = STATES.double().numpy() @ student.weight.detach().double().numpy().T
    theirs = 0.5 * THEIRS.double().numpy() @ teacher.weight.detach().double().numpy().T
    table, shared = numpy_reference.log_softmax(ours), min(30, teacher_size)
    np.testing.assert_allclose(logprobs.detach().numpy(), table[np.arange(12), np.arange(12)], rtol=1e-5)
    q, p = (np.exp(numpy_reference.log_softmax(z[:, :shared] / 2.0)) for z in (ours, theirs))
    pairs = zip(p, q, strict=True) if direction == "forward" else zip(q, p, strict=True)
    expected = [numpy_reference.kl(*pair) for pair in pairs]
    np.testing.assert_allclose(divergences.detach().numpy(), expected, rtol=1e-4)


def test_pieces_give_the_values_and_gradients_of_the_whole_without_all_logits() -> None:
    results, largest = [], []
    for limit in (2**20, 3 * 30):
        (student, teacher), states = make_heads(), STATES.clone().requires_grad_()
        student.logit_elements = limit
        with LargestTensor() as watch:
            logprobs, divergences = student(states, TARGETS, THEIRS, teacher)
            (logprobs.sum() + divergences.sum()).backward()
        results.append((logprobs, divergences, states.grad, student.weight.grad))
        largest.append(watch.elements)
        assert teacher.weight.grad is None
    for whole, pieced in zip(*results, strict=True):
        torch.testing.assert_close(pieced, whole)
    assert largest == [12 * 30, 8 * 30]  # All logits; with pieces nothing is larger than the weight.


@pytest.mark.parametrize("direction", DIVERGENCES)
def test_a_step_measures_the_mixed_loss_over_all_learnt_tokens(tiny_model: Path, teacher: Path, direction: str) -> None:
    demonstrations = make_demonstrations(0)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(path) for path in (tiny_model, teacher))
    cross_entropies, divergences = [], []
    for demonstration in demonstrations:
        ids = torch.tensor(demonstration.token_ids)
        at = [i for i, learnt in enumerate(demonstration.loss_mask) if learnt]
        z, t = (model(ids[None]).logits[0].detach().double().numpy()[[i - 1 for i in at]] for model in (ours, theirs))
        cross_entropies += [-row[ids[i]] for row, i in zip(numpy_reference.log_softmax(z), at, strict=True)]
        shared = min(z.shape[1], t.shape[1])
        q, p = (np.exp(numpy_reference.log_softmax(table[:, :shared] / 2.0)) for table in (z, t))
        pairs = zip(p, q, strict=True) if direction == "forward" else zip(q, p, strict=True)
        divergences += [numpy_reference.kl(*pair) for pair in pairs]
    expected = {
        "loss": 0.25 * np.mean(cross_entropies) + 0.75 * 4.0 * np.mean(divergences),
        "cross_entropy": np.mean(cross_entropies),
        "teacher_divergence": np.mean(divergences),
    }
    own = {"direction": direction, "weight": 0.75, "temperature": 2.0}
    for budget in (16, 10_000):
        rank = start(tiny_model, teacher, teacher=own, max_tokens_per_micro_batch=budget)
        assert rank.evaluate(demonstrations) == pytest.approx(expected, rel=1e-4)
        measured = rank.step(demonstrations).metrics
        assert {name: measured[name] for name in expected} == pytest.approx(expected, rel=1e-4)
        rank.close()


def test_the_student_becomes_like_the_teacher_and_the_export_is_the_student(
    tiny_model: Path, teacher: Path, tmp_path: Path
) -> None:
    demonstrations = make_demonstrations(1)
    rank = start(tiny_model, teacher, lr=3e-3)
    apart = [rank.step(demonstrations).metrics["teacher_divergence"] for _ in range(30)]
    final = rank.evaluate(demonstrations)["teacher_divergence"]
    rank.export(tmp_path)
    rank.close()
    assert final < apart[0] / 3
    again = start(tmp_path, teacher)
    assert again.evaluate(demonstrations)["teacher_divergence"] == pytest.approx(final, rel=1e-4)
    again.close()
    itself = start(tmp_path, tmp_path)
    assert itself.evaluate(demonstrations)["teacher_divergence"] == pytest.approx(0, abs=1e-6)
    itself.close()


CASES: dict[str, dict[str, Any]] = {
    "distilled": {"lr": 1e-3, "max_tokens_per_micro_batch": 40},
    "distilled_zero_2": {"lr": 1e-3, "max_tokens_per_micro_batch": 40, "zero_stage": 2},
    "distilled_zero_3": {"lr": 1e-3, "max_tokens_per_micro_batch": 40, "zero_stage": 3},
}


def train(name: str, model: Path, folder: Path, *, rank: int, world_size: int, ports: list[int]) -> None:
    """Three steps, the second with nothing for one of two ranks; leave what came of them in `folder`."""
    own = {"weight": 0.5, "direction": "reverse"}
    place = {"rank": rank, "world_size": world_size, "port": ports[0]}
    learner = start(model, model.parent / "untied", teacher=own, **place, **CASES[name])
    first = {key: weight.clone() for key, weight in learner._network.full_parameters()}
    reports = [learner.step(make_demonstrations(step, count)) for step, count in enumerate((5, 1, 6))]
    weights = {key: weight.clone() for key, weight in learner._network.full_parameters()}
    losses = [report.metrics["loss"] for report in reports]
    learner.close()
    torch.save({"start": first, "weights": weights, "losses": losses}, folder / f"outcome_{rank}.pt")


def test_two_ranks_train_and_report_what_one_does(tmp_path: Path) -> None:
    student = write_tiny_model(tmp_path / "student")
    write_tiny_model(tmp_path / "untied", seed=3)
    (tmp_path / "outcomes").mkdir()
    outcomes = outcomes_of_ranks(CASES, train, student, tmp_path / "outcomes", deadline_s=120)
    (alone,) = outcomes["distilled"]
    for name in ("distilled_zero_2", "distilled_zero_3"):
        for rank in outcomes[name]:
            assert same_update(alone["start"], alone["weights"], rank["weights"])
            assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-4)
