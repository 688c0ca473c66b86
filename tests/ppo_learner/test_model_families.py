"""Logprobs of a policy are those of the model's own logits, for the families of causal language models of transformers.

Each family scales, caps or biases its logits and counts its positions in its own way, and all that is known of a policy
is its decoder and its head. The models are drawn at random on the spot.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from ppo_learner.batching import batch_demonstrations, collate
from ppo_learner.distillation import Teacher
from ppo_learner.models import Policy, check_head, load_policy
from ppo_learner.optimizer_config import OptimizerConfig
from ppo_learner.supervised_config import SupervisedConfig
from ppo_learner.token_head import OutputLayer
from services.contracts.errors import UserError
from services.contracts.settings import ModelConfig
from tests.ppo_learner.builders import ALONE, VOCABULARY
from tests.ppo_learner.test_supervised import make_demonstrations

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY + 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}
EXPERTS = {"num_experts_per_tok": 2, "num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 24}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 16},
    "phi": {},
    "phi3": {},
    "gpt2": {},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 8},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {},
    "falcon": {},
    "mpt": {"d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 64},
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    "stablelm": {},
    "starcoder2": {},
    "smollm3": {},
    "glm": {"head_dim": 16},
    "glm4": {"head_dim": 16},
    "nemotron": {},
    "exaone4": {},
    "helium": {"head_dim": 16},
    "ernie4_5": {},
    "hunyuan_v1_dense": {"head_dim": 16},
    "apertus": {},
    "arcee": {},
    "mixtral": EXPERTS,
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 24},
    "qwen3_moe": EXPERTS | {"head_dim": 16},
    "olmoe": EXPERTS,
    "granitemoe": EXPERTS | {"logits_scaling": 4.0},
    "gpt_oss": EXPERTS | {"head_dim": 16},
    "mamba": {"state_size": 8},
    "falcon_h1": {"lm_head_multiplier": 0.3, "head_dim": 16, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
    "recurrent_gemma": {"head_dim": 16, "lru_width": 32, "logits_soft_cap": 2.0},
}


def tiny(family: str) -> Any:  # Any: transformers
    settings = {"num_key_value_heads": 2} if family in ("olmo", "phi") else {}
    config = transformers.AutoConfig.for_model(family, **SHAPE | settings | FAMILIES[family])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:  # Biases start at 0 and norms at 1, where a lost one would not show.
            nn.init.normal_(parameter, mean=float("bias" not in name), std=0.2)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_policys_logprobs_are_those_of_the_models_own_logits(family: str) -> None:
    model = tiny(family)
    policy = Policy(model, temperature=0.7)
    check_head(model, policy.token_head, family)
    demonstrations = make_demonstrations(0, count=5)
    batch = batch_demonstrations(demonstrations)
    found = policy(collate(batch, range(5), model.device)).logprobs
    expected = []
    for demonstration in demonstrations:  # One by one, so that there is no padding.
        ids = torch.tensor([demonstration.token_ids])
        table = torch.log_softmax(model(ids).logits[0, :-1].float() / 0.7, dim=-1)
        learnt = torch.tensor(demonstration.loss_mask[1:]).bool()
        expected.append(table.gather(1, ids[0, 1:, None])[:, 0][learnt])
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert found.std() > 0.05  # Far from uniform, so that a wrong weight would show.


@pytest.mark.parametrize("cap", [2.0, 30.0])
def test_a_cap_that_the_head_does_not_know_is_found_whatever_it_is(cap: float) -> None:
    settings = SHAPE | FAMILIES["gemma2"] | {"final_logit_softcapping": cap}
    config = transformers.AutoConfig.for_model("gemma2", **settings)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    check_head(model, OutputLayer(model.get_output_embeddings(), config), "gemma2")
    with pytest.raises(UserError, match="in a way of its own"):
        check_head(model, OutputLayer(model.get_output_embeddings(), SimpleNamespace()), "gemma2")


def test_the_cap_of_a_model_that_reads_more_than_text_is_that_of_its_text() -> None:
    text = SHAPE | {"final_logit_softcapping": 30.0, "head_dim": 16, "vocab_size_per_layer_input": VOCABULARY}
    config = transformers.AutoConfig.for_model("gemma4", text_config=text)
    assert config.get_text_config().final_logit_softcapping == 30.0
    head = OutputLayer(torch.nn.Linear(32, VOCABULARY, bias=False), config)
    assert head.logits(torch.full((1, 32), 1e4)).abs().max().item() <= 30.0


def test_a_teacher_whose_logits_are_made_otherwise_is_refused_too(tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model("hyperclovax", **{"logits_scaling": 0.3} | SHAPE)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"HyperCLOVAXForCausalLM\) makes its logits in a way of its own"):
        Teacher(SupervisedConfig(), ModelConfig(path=str(tmp_path), dtype="float32"), ALONE)


@pytest.mark.parametrize(
    "noise", [{"family": "mixtral", "router_jitter_noise": 0.5}, {"family": "phimoe", "input_jitter_noise": 0.5}]
)
@torch.no_grad()
def test_no_router_draws_noise_while_a_policy_learns(noise: dict[str, Any]) -> None:
    family = noise.pop("family")
    config = transformers.AutoConfig.for_model(family, **SHAPE | EXPERTS | noise)
    model = transformers.AutoModelForCausalLM.from_config(config)
    policy = Policy(model, temperature=1.0).eval()
    batch = collate(batch_demonstrations(make_demonstrations(0, count=5)), range(5), model.device)
    expected = policy(batch).logprobs
    policy.train()
    assert policy.training
    assert torch.equal(policy(batch).logprobs, expected)


def test_a_family_that_makes_its_logits_otherwise_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    settings = {"logits_scaling": 0.3} | SHAPE  # By which this family multiplies, where others divide.
    config = transformers.AutoConfig.for_model("hyperclovax", **settings)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"HyperCLOVAXForCausalLM\) makes its logits in a way of its own"):
        load_policy(ModelConfig(path=str(tmp_path), dtype="float32"), OptimizerConfig(), ALONE, temperature=1.0)
