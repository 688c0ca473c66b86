"""Adapters: what is trained, what is published and exported in their place, and what the reference is.

That ranks and ZeRO stages change nothing, and that a resumed run goes on to the bit, is tested in `test_ranks`.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from ppo_learner.batching import batch_rollouts
from ppo_learner.config import LearnerConfig
from ppo_learner.demonstrations import DemonstrationTask
from ppo_learner.interpolation import check_alike, write_between
from ppo_learner.learner import LearnerRank
from ppo_learner.lora import ADAPTER_FOLDER, add_adapters, is_adapter, merged, without_adapters
from ppo_learner.lora_config import LoraConfig
from ppo_learner.models import load_network
from ppo_learner.optimizer_config import OptimizerConfig
from ppo_learner.reward_config import RewardModelConfig
from ppo_learner.reward_training import RewardModelTask
from ppo_learner.supervised_config import SupervisedConfig
from rollout_workers.canary import check_canary
from services.contracts.errors import CanaryMismatch, UserError
from services.contracts.records import Canary
from services.contracts.settings import ModelConfig
from services.transport.transports import TRANSPORTS
from services.transport.weights import unpack
from tests.ppo_learner.builders import VOCABULARY, random_groups, start_rank, weights_of
from tests.ppo_learner.supervised_ranks import start_supervised
from tests.ppo_learner.test_reward_training import make_lists
from tests.ppo_learner.test_supervised import make_demonstrations
from tests.tiny import tiny_tokenizer, token_logprobs

LORA = {"lora": {"rank": 4}, "lr": 1e-2, "critic_lr": 1e-2}


@contextmanager
def running(model: Path, *, dtype: str = "float32", **config: Any) -> Iterator[LearnerRank]:
    rank = start_rank(LearnerConfig.model_validate(LORA | config), model, dtype=dtype)  # type: ignore[arg-type]  # a name
    try:
        yield rank
    finally:
        rank.close()


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose linear layers keep their weights transposed."""
    folder = tmp_path_factory.mktemp("gpt2")
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.2}
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY + 2, bos_token_id=None, eos_token_id=1, **shape)).save_pretrained(
        folder
    )
    tiny_tokenizer().save_pretrained(folder)
    return folder


def found(model: Any, canary: Canary) -> list[list[float]]:
    return [token_logprobs(model, sequence) for sequence in canary.sequences]


def test_merging_adds_the_scaled_product_by_hand() -> None:
    network = nn.ModuleDict({"base_layer": nn.Linear(2, 2), "lora_A": nn.Identity()})
    network.scaling, network.fan_in_fan_out = {"default": 2.0}, False  # type: ignore[assignment]  # what peft keeps
    parameters = [
        ("layer.base_layer.weight", torch.tensor([[1.0, 0.0], [0.0, 1.0]])),
        ("layer.base_layer.bias", torch.tensor([5.0, 6.0])),
        ("layer.lora_A.default.weight", torch.tensor([[1.0, 2.0]])),
        ("layer.lora_B.default.weight", torch.tensor([[3.0], [-1.0]])),
    ]
    weights = dict(merged(parameters, nn.ModuleDict({"layer": network})))
    # 2·[3, −1]ᵀ·[1, 2] = [[6, 12], [−2, −4]]
    assert weights["layer.weight"].tolist() == [[7.0, 12.0], [-2.0, -3.0]]
    assert weights["layer.bias"].tolist() == [5.0, 6.0]
    assert len(weights) == 2


@pytest.mark.parametrize("model", ["tiny_model", "untied_model", "gpt2"])
def test_a_publication_is_the_merged_model_and_the_canary_refuses_the_one_without_adapters(
    model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(model)
    with running(folder, critic="value_head") as rank:
        rank.step(random_groups(0))
        publication = rank.publish(1)
        rank.export(tmp_path)
    assert publication
    canary = publication.manifest.canary
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(CanaryMismatch):
        check_canary(canary, found(loaded, canary), version=1)
    sent = dict(unpack(publication.manifest, TRANSPORTS["disk"]().fetch(publication, timeout_s=5)))
    assert sent.keys() == dict(loaded.named_parameters()).keys()
    loaded.load_state_dict({name: tensor.clone() for name, tensor in sent.items()}, strict=False)
    assert check_canary(canary, found(loaded, canary), version=1) < 1e-5
    exported = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert check_canary(canary, found(exported, canary), version=1) < 1e-5
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / ADAPTER_FOLDER)
    assert check_canary(canary, found(adapted, canary), version=1) < 1e-5


def test_the_average_of_an_export_with_its_start_is_the_adapter_at_half_its_strength(
    tiny_model: Path, tmp_path: Path
) -> None:
    with running(tiny_model, critic="value_head") as rank:
        rank.step(random_groups(0))
        rank.export(tmp_path)
    check_alike(tiny_model, tmp_path)
    (tmp_path / "half").mkdir()
    write_between(tiny_model, tmp_path, 0.5, tmp_path / "half")
    shutil.copyfile(tmp_path / "config.json", tmp_path / "half" / "config.json")
    start, end, half = (AutoModelForCausalLM.from_pretrained(one) for one in (tiny_model, tmp_path, tmp_path / "half"))
    adapted = PeftModel.from_pretrained(start, tmp_path / ADAPTER_FOLDER)
    for layer in adapted.modules():
        if isinstance(layer, LoraLayer):
            layer.scale_layer(0.5)
    ids = torch.arange(2, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(half(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)
        assert (half(ids).logits - end(ids).logits).abs().max() > 0.01


def test_a_bfloat16_publication_passes_the_canary(tiny_model: Path) -> None:
    with running(tiny_model, dtype="bfloat16") as rank:
        rank.step(random_groups(0))
        publication = rank.publish(1)
    assert publication
    loaded = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    sent = unpack(publication.manifest, TRANSPORTS["disk"]().fetch(publication, timeout_s=5))
    loaded.load_state_dict({name: tensor.clone() for name, tensor in sent}, strict=False)
    check_canary(publication.manifest.canary, found(loaded, publication.manifest.canary), version=1)


def test_only_adapters_and_value_heads_are_trained_and_saved(tiny_model: Path, tmp_path: Path) -> None:
    def trained(rank: LearnerRank) -> dict[str, torch.Tensor]:
        engines = (rank._networks.policy, rank._networks.critic)
        return {name: tensor.clone() for engine in engines if engine for name, tensor in engine.full_parameters()}

    with running(tiny_model) as rank:
        before = trained(rank)
        # B and value heads are 0 at first, so the last to have a gradient is the critic's A, in the third step.
        for step in range(3):
            rank.step(random_groups(step))
        after = trained(rank)
        rank.save(tmp_path)
        groups = rank._networks.policy._engine.optimizer.param_groups
        num_trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert moved == {name for name in after if is_adapter(name) or "value_head" in name}
    adapters = sum(weight.numel() for name, weight in after.items() if is_adapter(name) and "language_model" in name)
    assert num_trained == adapters < sum(weight.numel() for weight in after.values()) / 5
    saved = [record["name"] for record in torch.load(tmp_path / "policy" / "rank_0.pt", weights_only=True)]
    assert saved and all(map(is_adapter, saved))


def test_the_reference_is_the_policy_before_training(tiny_model: Path) -> None:
    batch = batch_rollouts(random_groups(1))
    with running(tiny_model, kl_coefficient=0.1) as rank:
        start = rank._networks.evaluate(batch, logprobs=True)
        assert start.logprobs is not None and start.reference_logprobs is not None
        assert torch.equal(start.logprobs, start.reference_logprobs)
        assert rank.step(random_groups(0)).metrics["kl/reference"] == 0
        after = rank._networks.evaluate(batch, logprobs=True)
        assert after.logprobs is not None and after.reference_logprobs is not None
        assert torch.equal(after.reference_logprobs, start.reference_logprobs)
        assert (after.logprobs - start.logprobs).abs().mean() > 0.01
        assert rank.step(random_groups(0)).metrics["kl/reference"] > 0


def test_an_evaluation_without_adapters_leaves_them_in_place(tiny_model: Path) -> None:
    with running(tiny_model, algorithm="grpo") as rank:
        rank.step(random_groups(0))
        before = rank.publish(1)
        with pytest.raises(RuntimeError), without_adapters(rank._networks.policy.module):
            raise RuntimeError
        after = rank.publish(2)
    assert before and after and before.manifest.canary == after.manifest.canary


def test_demonstrations_are_learnt_by_adapters_and_the_export_has_learnt_them(tiny_model: Path, tmp_path: Path) -> None:
    demonstrations = make_demonstrations(1)
    rank = start_supervised(DemonstrationTask, tiny_model, SupervisedConfig(lr=1e-2, lora=LoraConfig(rank=8)))
    losses = [rank.step(demonstrations).metrics["loss"] for _ in range(8)]
    rank.export(tmp_path)
    final = rank.evaluate(demonstrations)["loss"]
    rank.close()
    assert final < losses[0] / 2
    again = start_supervised(DemonstrationTask, tmp_path, SupervisedConfig())
    assert again.evaluate(demonstrations)["loss"] == pytest.approx(final, rel=1e-4)
    again.close()


def test_a_reward_model_learns_by_adapters_and_a_whole_head(tiny_model: Path, tmp_path: Path) -> None:
    pairs = make_lists(0)
    learner = RewardModelConfig(lr=1e-2, lora=LoraConfig(rank=4))
    rank = start_supervised(RewardModelTask, tiny_model, learner)
    losses = [rank.step(pairs).metrics["loss"] for _ in range(6)]
    scores = rank.answers(pairs)
    rank.export(tmp_path)
    rank.close()
    assert losses[-1] < losses[0] / 2
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    sequences = [torch.tensor([ids]) for example in pairs for ids in example.sequences]
    assert [exported(ids).logits.item() for ids in sequences] == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["query"], "targets query does not fit the model: Target modules"),
        (["q_proj", "lm_head"], "names the model's head or embedding"),
        (["embed_tokens"], "names the model's head or embedding"),
    ],
)
def test_targets_that_cannot_be_adapted_are_refused(targets: list[str], said: str, untied_model: Path) -> None:
    with pytest.raises(UserError, match=said):
        add_adapters(AutoModelForCausalLM.from_pretrained(untied_model), LoraConfig(targets=tuple(targets)))


def test_no_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="targets is empty"):
        LoraConfig(targets=())


def test_chosen_targets_alone_are_adapted(tiny_model: Path) -> None:
    with running(tiny_model, algorithm="grpo", lora={"rank": 2, "targets": ["q_proj", "v_proj"]}) as rank:
        start = weights_of(rank)
        rank.step(random_groups(0))
        moved = {name for name, weight in weights_of(rank).items() if not torch.equal(weight, start[name])}
    assert moved and moved == {name for name in start if "q_proj" in name or "v_proj" in name}


FOUR_BITS = {"lora": {"rank": 4, "quantise": "4bit"}}


@pytest.mark.parametrize(("dtype", "zero_stage"), [("float32", 0), ("bfloat16", 2)])
def test_weights_of_4_bits_are_published_whole_and_pass_the_canary(
    dtype: str, zero_stage: int, untied_model: Path, tmp_path: Path
) -> None:
    with running(untied_model, dtype=dtype, zero_stage=zero_stage, kl_coefficient=0.1, **FOUR_BITS) as rank:
        held = {weight.dtype for name, weight in rank._networks.policy.full_parameters() if "base_layer" in name}
        assert rank.step(random_groups(0)).metrics["kl/reference"] == pytest.approx(0, abs=1e-6)
        rank.save(tmp_path / "checkpoint")
        assert rank.step(random_groups(1)).metrics["kl/reference"] > 0
        publication = rank.publish(2)
        rank.export(tmp_path / "export")
    assert publication and held == {torch.uint8}
    canary = publication.manifest.canary
    loaded = AutoModelForCausalLM.from_pretrained(untied_model, dtype=getattr(torch, dtype))
    sent = dict(unpack(publication.manifest, TRANSPORTS["disk"]().fetch(publication, timeout_s=5)))
    assert sent.keys() == dict(loaded.named_parameters()).keys()
    loaded.load_state_dict({name: tensor.clone() for name, tensor in sent.items()}, strict=False)
    check_canary(canary, found(loaded, canary), version=1)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert not hasattr(exported.config, "quantization_config")
    check_canary(canary, found(exported, canary), version=1)
    with running(untied_model, dtype=dtype, zero_stage=zero_stage, kl_coefficient=0.1, **FOUR_BITS) as resumed:
        resumed.load(tmp_path / "checkpoint")
        resumed.step(random_groups(1))
        again = resumed.publish(2)
    assert again and again.manifest.canary == canary


@pytest.mark.parametrize("kind", ["AutoModelForCausalLM", "AutoModel"])
def test_a_network_in_4_bits_is_read_into_the_memory_of_the_cpu_where_there_is_a_gpu_too(
    kind: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        config = LearnerConfig.model_validate(FOUR_BITS)
        network = load_network(kind, str(tiny_model), ModelConfig(path=str(tiny_model)), config, quantised=True)
    assert {weight.device.type for weight in network.parameters()} == {"cpu"}
    assert torch.uint8 in {weight.dtype for weight in network.parameters()}


def test_4_bits_are_refused_where_weights_would_be_cut_up_and_for_reward_models() -> None:
    with pytest.raises(ValueError, match="does not go with zero_stage 3"):
        OptimizerConfig.model_validate(FOUR_BITS | {"zero_stage": 3})
    with pytest.raises(ValueError, match="a reward model's weights stay whole"):
        RewardModelConfig.model_validate(FOUR_BITS)
