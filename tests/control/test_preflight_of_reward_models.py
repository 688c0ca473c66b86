"""Models, tokenizers and data that a reward model cannot be made of, refused before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, MambaConfig, PreTrainedConfig

from services.contracts.errors import UserError
from services.control.config import RewardModelRunConfig
from services.control.reward_model_preflight import check_reward_model
from tests.tiny import tiny_tokenizer


def write_model(folder: Path, shape: PreTrainedConfig, *, ends: bool = True) -> str:
    shape.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    if not ends:
        tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    return str(folder)


def config(folder: Path, model: str, **sections: dict[str, Any]) -> RewardModelRunConfig:
    rows = [{"prompt": f"{n}=", "chosen": str(n), "rejected": "no"} for n in range(20)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base: dict[str, dict[str, Any]] = {
        "model": {"path": model},
        "data": {"examples": str(folder / "pairs.jsonl"), "validation_share": 0.3},
        "learner": {"from_scratch": True},
    }
    return RewardModelRunConfig(**{name: base.get(name, {}) | sections.get(name, {}) for name in {**base, **sections}})


def encoder(*, longest: int = 32) -> BertConfig:
    return BertConfig(vocab_size=64, max_position_embeddings=longest)


def test_an_encoder_without_an_end_token_will_do_and_sets_the_longest_text(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", encoder())
    inputs = check_reward_model(config(tmp_path, model))
    assert inputs.max_tokens == 32
    assert len(inputs.examples.training) + len(inputs.examples.validation) == 20
    assert check_reward_model(config(tmp_path, model, data={"max_tokens": 9})).max_tokens == 9


def test_held_out_rows_are_all_judged(tmp_path: Path) -> None:
    held_out = {"examples": str(tmp_path / "pairs.jsonl")}
    inputs = check_reward_model(config(tmp_path, write_model(tmp_path / "model", encoder()), evaluate=held_out))
    assert inputs.held_out is not None
    assert len(inputs.held_out.training) == 20


@pytest.mark.parametrize(
    ("shape", "ends", "sections", "message"),
    [
        (MambaConfig(vocab_size=64), True, {}, "no outcome head for models of the kind 'mamba'"),
        (encoder(), False, {}, "no token to fill texts up with"),
        (encoder(), True, {"data": {"max_tokens": 33}}, r"data\.max_tokens is 33, and .* at most 32"),
        (encoder(), True, {"data": {"validation_share": 0.0}}, r"nothing would be left to judge .* by; set data\.val"),
        (encoder(), True, {"learner": {"objective": "process"}}, "row 0: no column 'steps'"),
        (encoder(), True, {"learner": {"from_scratch": False}}, "holds no weights .*set learner.from_scratch to true"),
        (encoder(), True, {"evaluate": {"examples": "nowhere.jsonl"}}, "'nowhere.jsonl' does not exist"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    shape: PreTrainedConfig, ends: bool, sections: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "model", shape, ends=ends)
    with pytest.raises(UserError, match=message):
        check_reward_model(config(tmp_path, model, **sections))
