"""Mixtures of experts: the balance loss against transformers' and NumPy, without padding, and what a step does."""

from collections.abc import Sequence
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
from ppo_learner.moe import load_metrics, routing
from ppo_learner.preference_config import PreferenceConfig
from ppo_learner.preference_training import METRICS, PreferenceTask, PreferenceWork, RoutedPreferenceWork
from ppo_learner.ranks import Ranks
from ppo_learner.supervised_config import SupervisedConfig
from services.contracts.errors import UserError
from services.contracts.preference_example import PreferenceExample
from services.contracts.settings import ModelConfig
from services.transport.transports import TRANSPORTS
from services.transport.weights import unpack
from tests.ppo_learner import numpy_objective
from tests.ppo_learner.builders import VOCABULARY, random_groups, same_update, start_rank, weights_of
from tests.ppo_learner.supervised_ranks import start_supervised
from tests.ppo_learner.test_preference_training import make, make_pairs, tokens_of
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
    found = routing([logits], real, 1)
    # 2·(2/3·(0.75 + 0.75 + 0.5)/3 + 1/3·(0.25 + 0.25 + 0.5)/3)
    assert float(found.balance_loss) == pytest.approx(2 * (2 / 3 * 2 / 3 + 1 / 3 * 1 / 3), rel=1e-5)
    assert found.loads.tolist() == [[2.0, 1.0]]


def test_the_balance_loss_is_that_of_transformers_layer_by_layer() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = [torch.randn(30, 8, generator=draw) for _ in range(3)]
    real = torch.rand(30, generator=draw) > 0.3
    expected = [load_balancing_loss_func((layer,), 8, 2, real[None]) for layer in logits]
    assert float(routing(logits, real, 2).balance_loss) == pytest.approx(float(sum(expected)) / 3, rel=1e-5)


def test_its_gradient_is_that_of_finite_differences() -> None:
    layers = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    real = torch.tensor([True] * 5 + [False])

    def loss(layers: Tensor) -> Tensor:
        return routing(list(layers), real, 2).balance_loss

    assert torch.autograd.gradcheck(loss, (layers,))


def test_the_balance_loss_agrees_with_numpy() -> None:
    draw = torch.Generator().manual_seed(0)
    layers = torch.randn(3, 30, 8, dtype=torch.float64, generator=draw)
    real = torch.rand(30, generator=draw) > 0.3
    expected = numpy_objective.balance_loss(list(layers.numpy()), real.tolist(), 2)
    assert float(routing(list(layers), real, 2).balance_loss) == pytest.approx(expected, rel=1e-12)


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
        assert found.balance_loss.item() == pytest.approx(expected, rel=1e-5)
        assert found.loads.sum(dim=1).tolist() == [2.0 * sum(batch.lengths)] * 2


def test_loads_are_told_by_their_extremes_and_their_entropy() -> None:
    metrics = load_metrics(torch.tensor([[4.0, 4.0, 4.0, 4.0], [8.0, 8.0, 0.0, 0.0]]))
    assert metrics == pytest.approx(
        {"router/load_max_over_mean": 1.5, "router/load_entropy": 0.75, "router/unused_experts": 1.0}
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


class PlainPreferenceTask(PreferenceTask):
    """As it was before routers had a loss."""

    def __init__(self, *place: Any) -> None:  # Any: as its parent's
        super().__init__(*place)
        self.metrics = METRICS

    def work(self, examples: Sequence[PreferenceExample]) -> PreferenceWork:
        return PreferenceWork(examples, self._learner, packed=self._packed)


def test_without_a_coefficient_preferences_are_learnt_as_if_there_were_no_loss_of_routers(experts: Path) -> None:
    examples, model = make_pairs(0), AutoModelForCausalLM.from_pretrained(experts).eval()
    logprobs = [tokens_of(model, completion).sum() for example in examples for completion in example.completions]
    outcomes = []
    for task in (PreferenceTask, PlainPreferenceTask):
        rank = start_supervised(task, experts, PreferenceConfig(lr=1e-3, max_tokens_per_micro_batch=40))
        assert rank.answers(examples) == pytest.approx(logprobs, abs=1e-4)  # Nothing of routers is among them.
        metrics = rank.step(examples).metrics
        outcomes.append(([metrics[name] for name in METRICS], dict(rank._network.full_parameters())))
        rank.close()
    assert outcomes[0][0] == outcomes[1][0]
    assert all(torch.equal(weight, outcomes[1][1][name]) for name, weight in outcomes[0][1].items())


def test_beside_preferences_routers_follow_the_gradient_to_even_loads(experts: Path) -> None:
    policy = Policy(AutoModelForCausalLM.from_pretrained(experts), temperature=1.0)
    routers = [weight for name, weight in policy.named_parameters() if name.endswith(".gate.weight")]
    part = tuple(range(9))

    def sums(coefficient: float) -> Tensor:
        learner = PreferenceConfig(router_loss_coefficient=coefficient)
        work = RoutedPreferenceWork(make_pairs(0), learner, packed=False)
        return work.sums(work.answer(policy, part, torch.device("cpu"))[0], part) / work.num_terms  # type: ignore[arg-type]  # not in an engine

    pulls = [torch.autograd.grad(sums(coefficient)[0], routers) for coefficient in (2.0, 0.0)]
    before = sums(0.0)[-1]
    with torch.no_grad():
        for router, with_loss, without in zip(routers, *pulls, strict=True):
            assert not torch.equal(with_loss, without)
            router.sub_(0.1 * (with_loss - without))
    assert len(routers) == 2
    assert sums(0.0)[-1] < before - 1e-3


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_without_a_coefficient_no_split_into_micro_batches_changes_a_step(experts: Path, zero_stage: int) -> None:
    outcomes = []
    for budget in (40, 100_000):
        settings = {"algorithm": "grpo", "lr": 1e-3, "zero_stage": zero_stage, "max_tokens_per_micro_batch": budget}
        rank = start_rank(LearnerConfig.model_validate(settings), experts)
        start = weights_of(rank)
        metrics = rank.step(random_groups(0)).metrics
        outcomes.append(({name: value for name, value in metrics.items() if "load" in name}, weights_of(rank)))
        rank.close()
    assert outcomes[0][0] == pytest.approx(outcomes[1][0]) and len(outcomes[0][0]) == 2
    assert same_update(start, outcomes[0][1], outcomes[1][1])


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
