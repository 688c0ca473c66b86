"""A Llama-shaped model of a few thousand parameters with a character tokenizer, made on the spot, with no download.

It must not know which part is tested with it. Invariant: the same arguments give the same weights.
"""

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    PreTrainedTokenizerFast,
)

from services.contracts.records import Canary
from services.contracts.reward_model import RewardModelCard, write_card

CHARACTERS = "0123456789+-=abcdefghijklmnopqrstuvwxyz .?!"
END_OF_SEQUENCE = "<eos>"
PADDING = "<pad>"


def write_tiny_model(
    folder: Path, *, tied: bool = True, seed: int = 0, characters: str = CHARACTERS, **overrides: Any
) -> Path:
    """Write model and tokenizer to `folder` in Hugging Face format. `overrides` go to `LlamaConfig`."""
    tokenizer = tiny_tokenizer(characters)
    tiny_model(tied=tied, seed=seed, vocab_size=len(tokenizer), **overrides).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


TINY_EXPERTS: dict[str, Any] = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "num_experts_per_tok": 2,
    "initializer_range": 0.3,
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": 0,
}
"""What mixtures of experts for `tiny_tokenizer` have in common; vocabulary and sizes are the test's."""


def tiny_tokenizer(characters: str = CHARACTERS) -> PreTrainedTokenizerFast:
    """One token for each character, after padding (0) and end of sequence (1)."""
    vocabulary = {token: index for index, token in enumerate([PADDING, END_OF_SEQUENCE, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PADDING))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_SEQUENCE, pad_token=PADDING, clean_up_tokenization_spaces=False
    )


def tiny_model(*, tied: bool = True, seed: int = 0, **overrides: Any) -> Any:  # Any: transformers is untyped here
    """A model whose distributions are far from uniform, so that a wrong weight shows in its logprobs."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(tiny_config(tie_word_embeddings=tied, **overrides)).eval()


def tiny_config(**overrides: Any) -> LlamaConfig:
    """The shape of the model."""
    shape = {
        "vocab_size": len(CHARACTERS) + 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "dtype": "float32",
    }
    return LlamaConfig(**shape | overrides)


def write_tiny_reward_model(folder: Path, *, version: str = "a", seed: int = 0, **card: Any) -> Path:
    """Write a reward model with its card to `folder`. `card` are fields of `RewardModelCard`."""
    head = {"outcome": LlamaForSequenceClassification, "process": LlamaForTokenClassification}
    torch.manual_seed(seed)
    config = tiny_config(num_labels=1, tie_word_embeddings=False)
    head[card.get("head", "outcome")](config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    write_card(folder, RewardModelCard(version=version, **{"max_tokens": 256} | card))
    return folder


@torch.no_grad()
def token_logprobs(model: Any, token_ids: Sequence[int], *, temperature: float = 1.0) -> list[float]:
    """(T - 1,) log-probabilities of tokens 1 … T-1, each given all before it."""
    ids = torch.tensor([list(token_ids)], device=model.device)
    logits = model(ids).logits[0, :-1].float() / temperature
    return logits.log_softmax(dim=-1).gather(-1, ids[0, 1:, None])[:, 0].tolist()  # type: ignore[no-any-return]


def tiny_canary(model: Any, *, tolerance: float = 1e-4) -> Canary:
    """What `model` gives two fixed sequences."""
    sequences = (array("i", range(2, 42)), array("i", [7, 9, 7, 9, 7]))
    logprobs = tuple(array("f", token_logprobs(model, sequence)) for sequence in sequences)
    return Canary(sequences=sequences, logprobs=logprobs, tolerance=tolerance)
