"""Mixtures of experts: the balance loss against transformers' and NumPy, without padding, however a step is split."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from ppo_learner.batching import batch_demonstrations, collate
from ppo_learner.config import LearnerConfig
from ppo_learner.demonstrations import DemonstrationTask
from ppo_learner.lora import add_adapters
from ppo_learner.lora_config import LoraConfig
from ppo_learner.models import Policy
from ppo_learner.moe import balance_loss, router_metrics, routing
from ppo_learner.preference_config import PreferenceConfig
from ppo_learner.preference_training import PreferenceTask
from ppo_learner.ranks import Ranks
from ppo_learner.supervised import SupervisedRank
from ppo_learner.supervised_config import SupervisedConfig
from services.contracts.errors import UserError
from services.contracts.records import WeightedDemonstrations
from services.contracts.settings import ModelConfig
from services.transport.transports import TRANSPORTS
from services.transport.weights import unpack
from tests.ppo_learner import numpy_objective
from tests.ppo_learner.builders import VOCABULARY, random_groups, run_as_pair, same_update, start_rank, weights_of
from tests.ppo_learner.supervised_ranks import start_supervised
from tests.ppo_learner.test_preference_training import make, make_pairs
from tests.ppo_learner.test_supervised import make_demonstrations
from tests.tiny import TINY_EXPERTS, tiny_tokenizer

SHAPE: dict[str, Any] = {
    **TINY_EXPERTS,
    "vocab_size": VOCABULARY + 2,
    "hidden_size": 32,
    "intermediate_size": 48,
}
CONFIGS = {
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=4),
    "qwen3_moe": Qwen3MoeConfig(**SHAPE, num_experts=4, moe_intermediate_size=24, head_dim=16),
}


@pytest.fixture(scope="module", params=CONFIGS)
def experts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of two layers with four experts each."""
    return write_experts(tmp_path_factory.mktemp(request.param), request.param)


def write_experts(folder: Path, name: str = "mixtral") -> Path:
    """Write such a model and its tokenizer."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[name]).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_the_balance_loss_by_hand() -> None:
    # Tokens 0 and 1 go to expert 0, token 2 to expert 1; token 3 is padding. Probabilities are powers of e, over sums.
    logits = torch.log(torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.5, 0.5], [0.1, 0.9]]))
    logits[2, 1] += 1e-6
    real = torch.tensor([True, True, True, False])
    whole = routing([logits], real, 1)
    torch.testing.assert_close(whole, torch.tensor([[[2.0, 1.0]], [[2.0, 1.0]]]))
    # 2·(2/3·(0.75 + 0.75 + 0.5)/3 + 1/3·(0.25 + 0.25 + 0.5)/3)
    assert float(balance_loss(whole, whole)) == pytest.approx(2 * (2 / 3 * 2 / 3 + 1 / 3 * 1 / 3), rel=1e-5)
    # Of tokens 1, 2 and the padding alone: 2·(2/3·(0.75 + 0.5)/3 + 1/3·(0.25 + 0.5)/3)
    part = routing([logits[1:]], real[1:], 1)
    assert float(balance_loss(part, whole)) == pytest.approx(2 * (2 / 3 * 1.25 / 3 + 1 / 3 * 0.75 / 3), rel=1e-5)


def test_the_balance_loss_is_that_of_transformers_layer_by_layer() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = [torch.randn(30, 8, generator=draw) for _ in range(3)]
    real = torch.rand(30, generator=draw) > 0.3
    expected = [load_balancing_loss_func((layer,), 8, 2, real[None]) for layer in logits]
    whole = routing(logits, real, 2)
    assert float(balance_loss(whole, whole)) == pytest.approx(float(sum(expected)) / 3, rel=1e-5)


def test_its_gradient_is_that_of_finite_differences() -> None:
    layers = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    real = torch.tensor([True] * 5 + [False])

    def loss(layers: Tensor) -> Tensor:
        whole = routing(list(layers), real, 2)
        return balance_loss(whole, whole)

    assert torch.autograd.gradcheck(loss, (layers,))


def test_parts_add_up_to_the_loss_of_the_whole_and_to_its_gradient() -> None:
    layers = torch.randn(2, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    real = torch.tensor([True] * 6 + [False])
    whole = routing(list(layers), real, 2)
    parts = [routing(list(layers[:, at]), real[at], 2) for at in (slice(0, 1), slice(1, 5), slice(5, 7))]
    losses = torch.stack([balance_loss(part, whole) for part in parts]).sum(), balance_loss(whole, whole)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, layers)[0] for loss in losses))
    alone = torch.stack([balance_loss(part, part) for part in parts]).mean()
    assert abs(alone - losses[1]).item() > 0.01  # The mean of each part's own loss is another one.


def test_the_balance_loss_agrees_with_numpy() -> None:
    draw = torch.Generator().manual_seed(0)
    layers = torch.randn(3, 30, 8, dtype=torch.float64, generator=draw)
    real = torch.rand(30, generator=draw) > 0.3
    expected = numpy_objective.balance_loss(list(layers.numpy()), real.tolist(), 2)
    whole = routing(list(layers), real, 2)
    assert float(balance_loss(whole, whole)) == pytest.approx(expected, rel=1e-12)


def test_a_policys_routing_is_what_the_model_itself_reports_of_real_tokens(experts: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(experts)
    demonstrations = make_demonstrations(0, count=4)
    batch = batch_demonstrations(demonstrations)
    ids = torch.nn.utils.rnn.pad_sequence(list(batch.token_ids), batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor(batch.lengths)[:, None]
    logits = model(ids, attention_mask=mask.long(), output_router_logits=True).router_logits
    expected = float(sum(load_balancing_loss_func((layer.detach(),), 4, 2, mask) for layer in logits)) / len(logits)
    for packed in (False, True):
        found = Policy(model, temperature=1.0)(collate(batch, range(4), ids.device, packed=packed)).routing
        assert found is not None
        assert balance_loss(found, found).item() == pytest.approx(expected, rel=1e-5)
        assert found[1].sum(dim=1).tolist() == [2.0 * sum(batch.lengths)] * 2


def test_loads_are_told_by_their_extremes_and_their_entropy() -> None:
    loads = torch.tensor([[4.0, 4.0, 4.0, 4.0], [8.0, 8.0, 0.0, 0.0]])
    probabilities = torch.tensor([[2.0, 2.0, 2.0, 2.0], [4.0, 4.0, 0.0, 0.0]])  # Of 8 tokens, each to 2 experts.
    assert router_metrics(torch.stack([probabilities, loads])) == pytest.approx(
        {
            "router/balance_loss": 3.0,  # 2 where all are used alike, 4 where two of four are.
            "router/load_max_over_mean": 1.5,
            "router/load_entropy": 0.75,
            "router/unused_experts": 1.0,
        }
    )


def test_the_loss_evens_out_the_loads_in_reinforcement_and_supervised_learning(experts: Path) -> None:
    ends = {}
    for coefficient in (0.0, 1.0):
        settings = {"algorithm": "grpo", "lr": 1e-2, "router_loss_coefficient": coefficient}
        rank = start_rank(LearnerConfig.model_validate(settings), experts)
        ends[coefficient] = [rank.step(random_groups(0)).metrics["router/balance_loss"] for _ in range(6)][-1]
        rank.close()
    assert ends[1.0] < ends[0.0] - 0.02
    for coefficient in (0.0, 1.0):
        learner = SupervisedConfig(lr=3e-3, router_loss_coefficient=coefficient)
        supervised = start_supervised(DemonstrationTask, experts, learner)
        reports = [supervised.step(make_demonstrations(1)).metrics for _ in range(6)]
        ends[coefficient] = reports[-1]["router/balance_loss"]
        supervised.close()
        assert reports[-1]["loss"] < reports[0]["loss"]
    assert ends[1.0] < ends[0.0]


@pytest.mark.parametrize("algorithm", ["dpo", "kto"])
def test_the_loss_evens_out_the_loads_while_a_preference_is_learnt(experts: Path, algorithm: str) -> None:
    settings = {"algorithm": algorithm, "lr": 3e-3}
    ends = {}
    for coefficient in (0.0, 1.0):
        learner = PreferenceConfig.model_validate(settings | {"router_loss_coefficient": coefficient})
        rank = start_supervised(PreferenceTask, experts, learner)
        reports = [rank.step(make(settings, 0)).metrics for _ in range(6)]
        ends[coefficient] = reports[-1]["router/balance_loss"]
        rank.close()
        assert reports[-1]["rewards/margin"] > reports[0]["rewards/margin"]
    assert ends[1.0] < ends[0.0] - 0.02


def step_of_rollouts(model: Path, **place: Any) -> dict[str, Any]:
    """One step of reinforcement learning in two updates, with demonstrations beside it, and what came of it."""
    settings = {"algorithm": "grpo", "lr": 1e-3, "num_minibatches": 2, "router_loss_coefficient": COEFFICIENT}
    rank = start_rank(LearnerConfig.model_validate(settings | place.pop("settings")), model, **place)
    start = weights_of(rank)
    beside = WeightedDemonstrations(demonstrations=tuple(make_demonstrations(3, count=5)), coefficient=0.5)
    metrics = rank.step(random_groups(0), beside).metrics
    outcome = {"start": start, "metrics": metrics, "weights": weights_of(rank)}
    rank.close()
    return outcome


def step_of_preferences(model: Path, **place: Any) -> dict[str, Any]:
    """One supervised step, and what came of it."""
    settings = {"lr": 1e-3, "router_loss_coefficient": COEFFICIENT} | place.pop("settings")
    rank = start_supervised(PreferenceTask, model, PreferenceConfig.model_validate(settings), **place)
    start = copies(rank)
    outcome = {"start": start, "metrics": rank.step(make_pairs(0)).metrics, "weights": copies(rank)}
    rank.close()
    return outcome


def copies(rank: SupervisedRank) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in rank._network.full_parameters()}


COEFFICIENT = 0.3
STEPS = (step_of_rollouts, step_of_preferences)
OF_TWO_RANKS: dict[str, dict[str, Any]] = {
    "zero_0": {},
    "zero_3": {"zero_stage": 3},
    "shared": {"num_ranks": 2, "sequence_parallel": 2, "zero_stage": 2},
}
SPLITS = ({"max_tokens_per_micro_batch": 40}, {"max_tokens_per_micro_batch": 64, "packing": "on"})


@pytest.mark.parametrize("step", STEPS)
def test_no_split_into_micro_batches_changes_a_step(experts: Path, step: Callable[..., dict[str, Any]]) -> None:
    at_once = step(experts, settings={"max_tokens_per_micro_batch": 100_000})
    for settings in SPLITS:
        assert_same_step(step(experts, settings=settings), at_once)


def test_two_ranks_take_the_step_that_one_does(tmp_path: Path) -> None:
    model = write_experts(tmp_path)
    run_as_pair(steps_of_a_pair, model, tmp_path, deadline_s=120)
    for step in STEPS:
        at_once = step(model, settings={"max_tokens_per_micro_batch": 100_000})
        for path in tmp_path.glob(f"{step.__name__}_*.pt"):
            assert_same_step(torch.load(path), at_once)
    assert len(list(tmp_path.glob("*.pt"))) == 2 * 2 * len(OF_TWO_RANKS)


def steps_of_a_pair(rank: int, meet: Callable[[], int], model: Path, folder: Path) -> None:
    for step in STEPS:
        for name, changes in OF_TWO_RANKS.items():
            settings = {"max_tokens_per_micro_batch": 40} | changes
            outcome = step(model, settings=settings, rank=rank, world_size=2, port=meet())
            torch.save(outcome, folder / f"{step.__name__}_{name}_{rank}.pt")


def assert_same_step(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected["metrics"].items():
        if name == "loss" or name.startswith(("router", "gradient_norm")):
            assert found["metrics"][name] == pytest.approx(value, rel=1e-4), name
    assert same_update(expected["start"], expected["weights"], found["weights"])


def test_what_is_reported_is_the_loss_of_all_tokens(experts: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(experts).eval()
    demonstrations = make_demonstrations(0, count=4)
    batch = batch_demonstrations(demonstrations)
    whole = Policy(model, temperature=1.0)(collate(batch, range(4), torch.device("cpu"))).routing.detach()
    found = {}
    for coefficient in (0.0, COEFFICIENT):
        learner = SupervisedConfig(router_loss_coefficient=coefficient, max_tokens_per_micro_batch=20)
        rank = start_supervised(DemonstrationTask, experts, learner)
        found[coefficient] = rank.evaluate(demonstrations), rank.step(demonstrations).metrics
        rank.close()
    for evaluated, learnt in found.values():
        for name, value in router_metrics(whole).items():
            assert evaluated[name] == pytest.approx(value, rel=1e-5) == learnt[name]
        assert evaluated["loss"] == pytest.approx(found[0.0][0]["loss"]) == learnt["loss"]  # Cross-entropy alone.


def test_experts_are_published_under_the_names_that_they_are_stored_under(experts: Path, tmp_path: Path) -> None:
    rank = start_rank(LearnerConfig(algorithm="grpo", lr=1e-3), experts)
    rank.step(random_groups(0))
    publication = rank.publish(1)
    rank.export(tmp_path)
    rank.close()
    assert publication
    sent = dict(unpack(publication.manifest, TRANSPORTS["disk"]().fetch(publication, timeout_s=5)))
    stored = stored_weights(tmp_path)
    assert sent.keys() == stored.keys() == stored_weights(experts).keys()
    assert all(torch.equal(weight, stored[name]) for name, weight in sent.items())


def stored_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_a_model_without_experts_has_no_loss_to_weigh(tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"router_loss_coefficient is 0\.01, and .* has no experts"):
        start_rank(LearnerConfig(router_loss_coefficient=0.01), tiny_model)
    for kind, section in ((DemonstrationTask, SupervisedConfig), (PreferenceTask, PreferenceConfig)):
        place = ModelConfig(path=str(tiny_model)), Ranks(rank=0, world_size=1, device=torch.device("cpu"))
        with pytest.raises(UserError, match=r"router_loss_coefficient is 0\.01, and .* has no experts"):
            kind(section(router_loss_coefficient=0.01), *place)  # type: ignore[operator]  # each has its own section


def test_adapters_leave_experts_alone_and_are_merged_under_the_stored_names(experts: Path, tmp_path: Path) -> None:
    settings = {"algorithm": "grpo", "lr": 1e-2, "lora": {"rank": 4}, "router_loss_coefficient": 0.1}
    rank = start_rank(LearnerConfig.model_validate(settings), experts)
    start = weights_of(rank)
    rank.step(random_groups(0))
    moved = {name for name, weight in weights_of(rank).items() if not torch.equal(weight, start[name])}
    publication = rank.publish(1)
    rank.close()
    assert publication and moved and all("_proj.weight" in name and "self_attn" in name for name in moved)
    assert {entry.name for entry in publication.manifest.tensors} == stored_weights(experts).keys()


def test_adapters_on_experts_are_refused(experts: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(experts)
    names = ("w1", "w2", "w3") if "mixtral" in str(experts) else ("gate_proj", "up_proj", "down_proj")
    with pytest.raises(UserError, match="takes in experts"):
        add_adapters(model, LoraConfig(targets=names))
