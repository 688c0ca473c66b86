"""The gradient's norm by kind of module: all of it, once, at any ZeRO stage; `test_ranks` compares numbers of ranks."""

import math
from pathlib import Path
from typing import Any

import pytest

from ppo_learner.config import LearnerConfig
from ppo_learner.gradient_norms import kind_of
from tests.ppo_learner.builders import random_groups, start_rank


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("language_model.model.embed_tokens.weight", "embedding"),
        ("language_model.model.layers.3.self_attn.q_proj.weight", "attention"),
        ("language_model.model.layers.3.self_attn.q_norm.weight", "norm"),
        ("language_model.model.layers.3.input_layernorm.weight", "norm"),
        ("language_model.model.layers.3.mlp.down_proj.weight", "mlp"),
        ("language_model.model.layers.3.mlp.experts.gate_up_proj", "mlp"),
        ("language_model.lm_head.weight", "head"),
        ("value_head.weight", "head"),
        ("language_model.transformer.h.0.attn.c_attn.bias", "attention"),
        ("language_model.something", "other"),
    ],
)
def test_the_kind_of_a_module_is_told_by_its_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def parts_of(metrics: dict[str, float], network: str) -> dict[str, float]:
    prefix = f"gradient_norm/{network}/"
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("max_gradient_norm", [0.0, 1e-3])
def test_the_parts_make_up_the_whole_before_clipping(
    zero_stage: int, max_gradient_norm: float, untied_model: Path
) -> None:
    metrics = _metrics(untied_model, zero_stage=zero_stage, max_gradient_norm=max_gradient_norm)
    for network in ("policy", "critic"):
        parts = parts_of(metrics, network)
        assert parts.keys() == {"embedding", "attention", "mlp", "norm", "head"}
        # A critic's head starts at zero, which no gradient passes at first.
        assert all(norm > 0 for kind, norm in parts.items() if network == "policy" or kind == "head")
        whole = metrics[f"gradient_norm/{network}"]
        assert math.hypot(*parts.values()) == pytest.approx(whole, rel=1e-4)
        assert whole > 2e-3


def _metrics(model: Path, **settings: Any) -> dict[str, float]:
    config = LearnerConfig.model_validate({"max_tokens_per_micro_batch": 64, **settings})
    rank = start_rank(config, model)
    try:
        return dict(rank.step(random_groups(0)).metrics)
    finally:
        rank.close()
