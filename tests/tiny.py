"""A Qwen2-shaped model of a few thousand parameters with a character tokenizer, made on the spot, with no download.

It must not know which part is tested with it. Invariant: the same arguments give the same weights.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

CHARACTERS = "0123456789+-=abcdefghijklmnopqrstuvwxyz .?!"
END_OF_SEQUENCE = "<eos>"
PADDING = "<pad>"


def write_tiny_model(folder: Path, *, tied: bool = True, seed: int = 0, **overrides: Any) -> Path:
    """Write model and tokenizer to `folder` in Hugging Face format. `overrides` go to `Qwen2Config`."""
    tokenizer = tiny_tokenizer()
    tiny_model(tied=tied, seed=seed, vocab_size=len(tokenizer), **overrides).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each character, after padding (0) and end of sequence (1)."""
    vocabulary = {token: index for index, token in enumerate([PADDING, END_OF_SEQUENCE, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PADDING))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_SEQUENCE, pad_token=PADDING, clean_up_tokenization_spaces=False
    )


def tiny_model(*, tied: bool = True, seed: int = 0, **overrides: Any) -> Any:  # Any: transformers is untyped here
    """A model whose distributions are far from uniform, so that a wrong weight shows in its logprobs."""
    shape = {
        "vocab_size": len(CHARACTERS) + 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "dtype": "float32",
    }
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(**shape | overrides)).eval()
