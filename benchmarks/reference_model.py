"""The model of the reference case: Llama-shaped, 3.3 million parameters, 99 characters, made on the spot.

Untrained, it gives every token about the same chance; so completions end by chance, with long tails, as geometric
lengths do.
"""

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NUM_CHARACTERS = 97


def write_reference_model(folder: Path, *, hidden_size: int = 192, num_layers: int = 6) -> LlamaForCausalLM:
    """Write model and tokenizer to `folder` in Hugging Face format; returns the model."""
    _tokenizer().save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=NUM_CHARACTERS + 2,
            hidden_size=hidden_size,
            intermediate_size=4 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=hidden_size // 32,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            pad_token_id=0,
            eos_token_id=1,
            dtype="float32",
        )
    ).eval()
    model.save_pretrained(folder)
    return model


def _tokenizer() -> PreTrainedTokenizerFast:
    characters = [chr(32 + index) for index in range(95)] + ["\n", "\t"]
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
