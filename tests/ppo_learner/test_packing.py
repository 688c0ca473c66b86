"""Sequences in one row: the numbers and gradients of sequences apart, and refusal where they would see each other."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional
from transformers import AttentionInterface

from ppo_learner.batching import batch_rollouts, collate
from ppo_learner.config import LearnerConfig
from ppo_learner.models import Policy
from services.contracts.errors import UserError
from tests.ppo_learner.builders import is_of_the_machine, make_group, random_groups, same_update, start_rank, weights_of
from tests.tiny import tiny_model, tiny_tokenizer

CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": 45, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 128, "initializer_range": 0.2,
    "pad_token_id": 0, "dtype": "float32",
}  # fmt: skip
FAMILIES = ["Qwen2", "Qwen3", "Mistral", "Gemma2", "Olmo2", "Granite", "Cohere", "Phi3", "Mixtral"]
FAST = {"lr": 1e-3, "critic_lr": 1e-3, "max_tokens_per_micro_batch": 64}


def attention_by_bounds(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: None, scaling: float, **options: Any
) -> tuple[torch.Tensor, None]:
    """What a kernel for variable lengths does: nothing but the bounds of the sequences keeps them apart."""
    if "cu_seq_lens_q" not in options:
        attended = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return attended.transpose(1, 2), None
    bounds = options["cu_seq_lens_q"].tolist()
    assert options["max_length_q"] == max(b - a for a, b in pairwise(bounds))
    pieces = [
        functional.scaled_dot_product_attention(
            query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], is_causal=True, scale=scaling, enable_gqa=True
        )
        for a, b in pairwise(bounds)
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2), None


AttentionInterface.register("by_bounds", attention_by_bounds)


def family(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SHAPE | changes)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def outcome(language_model: Any, *, packed: bool) -> dict[str, torch.Tensor]:
    """Logprobs, and the gradient of a weighted sum of them."""
    policy = Policy(language_model, temperature=1.0)
    batch = batch_rollouts(random_groups(0))
    micro_batch = collate(batch, range(len(batch.lengths)), CPU, packed=packed)
    logprobs, *_ = policy(micro_batch)
    policy.zero_grad()
    (logprobs * torch.linspace(-1, 1, len(logprobs))).sum().backward()
    gradients = {name: weight.grad for name, weight in policy.named_parameters() if weight.grad is not None}
    return {"logprobs": logprobs.detach(), **gradients}


def assert_same_outcome(language_model: Any) -> None:
    apart = {name: value.clone() for name, value in outcome(language_model, packed=False).items()}
    together = outcome(language_model, packed=True)
    assert apart.keys() == together.keys()
    for name, value in apart.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(together[name], value, rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "by_bounds"])
def test_a_packed_row_gives_the_logprobs_and_gradients_of_its_sequences_apart(attention: str) -> None:
    model = tiny_model(attn_implementation="sdpa")
    model.set_attn_implementation(attention)
    assert_same_outcome(model)


@pytest.mark.parametrize("name", FAMILIES)
def test_sequences_in_one_row_are_kept_apart_in_every_family(name: str) -> None:
    assert_same_outcome(family(name))


def test_a_packed_row_has_no_padding_and_its_sequences_begin_at_position_0() -> None:
    batch = batch_rollouts([make_group([[0, 0, 1, 1], [0, 1], [0, 0, 1]], [1.0, 0.0, 0.0])])
    packed = collate(batch, [2, 0], CPU, packed=True)
    assert packed.token_ids.tolist() == [[*batch.token_ids[2].tolist(), *batch.token_ids[0].tolist()]]
    assert packed.packing
    assert packed.packing.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    assert packed.packing.bounds.tolist() == [0, 3, 7]
    assert packed.packing.longest == 4
    assert packed.rows.tolist() == [0, 1, 1]
    assert packed.columns.tolist() == [1, 4, 5]
    assert packed.actions.tolist() == [3, 0, 1]
    assert packed.targets.tolist() == packed.token_ids[0, packed.columns + 1].tolist()


def test_no_sequences_make_a_packed_row_with_nothing_to_train() -> None:
    packed = collate(batch_rollouts(random_groups(0)), [], CPU, packed=True)
    assert packed.token_ids.shape == (1, 1)
    assert len(packed.targets) == len(packed.columns) == 0


@pytest.mark.parametrize(
    "config", [{}, {"critic": "value_head"}, {"algorithm": "grpo", "importance_correction": "sequence_tis"}], ids=str
)
def test_packing_changes_neither_report_nor_weights(config: dict[str, Any], tiny_model: Path) -> None:
    outcomes = []
    for packing in ("off", "on"):
        rank = start_rank(LearnerConfig.model_validate(FAST | config | {"packing": packing}), tiny_model)
        assert rank._networks.packed == (packing == "on")
        start = weights_of(rank)
        report = rank.step(random_groups(0))
        outcomes.append((report.metrics, weights_of(rank)))
        rank.close()
    (apart, weights), (together, packed_weights) = outcomes
    for name in {name for name in apart if not is_of_the_machine(name)}:
        assert apart[name] == pytest.approx(together[name], rel=1e-4, abs=1e-5), name
    assert same_update(start, weights, packed_weights)


def test_without_kernels_for_variable_lengths_sequences_are_padded_by_default(tiny_model: Path) -> None:
    rank = start_rank(LearnerConfig(algorithm="grpo"), tiny_model)
    assert not rank._networks.packed
    rank.close()


def write_state_space_model(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.Lfm2Config(
        vocab_size=45, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, layer_types=["conv", "full_attention"], initializer_range=0.2, pad_token_id=0,
        dtype="float32",
    )  # fmt: skip
    transformers.Lfm2ForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_a_model_whose_sequences_would_see_each_other_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"see each other; set learner.packing: off"):
        start_rank(LearnerConfig(algorithm="grpo", packing="on"), write_state_space_model(tmp_path))
