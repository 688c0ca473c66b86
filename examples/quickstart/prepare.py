"""Write everything the quickstart needs into one folder: a character tokenizer, tiny untrained models, and a task.

    python examples/quickstart/prepare.py runs/quickstart --seed 0

The task is to add two numbers of two digits ("27+58=" → "085"). All 10,000 sums are shuffled and split into
disjoint files: `train.jsonl` to learn from and `held_out.jsonl` to be judged on. The demonstrations for the warm-up
come from someone who often forgets to carry ("27+58=" → "075"), which leaves something for the reward to teach.
`small_model` has fewer parameters and layers, to be taught by it.
"""

import argparse
import json
import random
import string
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NUM_HELD_OUT = 500
SHARE_WITHOUT_CARRY = 0.6
SPECIAL_TOKENS = ("<pad>", "<end>", "<unknown>")


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each printable ASCII character."""
    characters = string.digits + string.ascii_letters + string.punctuation + " \n"
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *characters))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>", model_max_length=64
    )


def tiny_model(
    vocabulary_size: int, end_token: int, seed: int, *, hidden_size: int = 128, num_layers: int = 4
) -> LlamaForCausalLM:
    """A Llama with random weights, by default of one million parameters."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary_size,
            hidden_size=hidden_size,
            intermediate_size=3 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=hidden_size // 32,  # Heads of 32 numbers, which vLLM serves on a CPU.
            num_key_value_heads=hidden_size // 32,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end_token,
            pad_token_id=0,
        )
    )


def sums(seed: int) -> list[dict[str, str]]:
    """Every sum of two numbers below 100 with its answer and a fallible demonstration of it, in random order."""
    draw = random.Random(seed)
    rows = []
    for a in range(100):
        for b in range(100):
            demonstrated = add_without_carry(a, b) if draw.random() < SHARE_WITHOUT_CARRY else a + b
            rows.append({"question": f"{a:02}+{b:02}=", "answer": f"{a + b:03}", "demonstration": f"{demonstrated:03}"})
    draw.shuffle(rows)
    return rows


def add_without_carry(a: int, b: int) -> int:
    """The sum of each column modulo ten: 27 and 58 give 75."""
    return (a // 10 + b // 10) % 10 * 10 + (a + b) % 10


def write_lines(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    tokenizer = character_tokenizer()
    for name, shape in (("model", {}), ("small_model", {"hidden_size": 96, "num_layers": 2})):
        model = tiny_model(len(tokenizer), tokenizer.eos_token_id, arguments.seed, **shape)
        model.save_pretrained(arguments.folder / name)
        tokenizer.save_pretrained(arguments.folder / name)
    rows = sums(arguments.seed)
    write_lines(arguments.folder / "held_out.jsonl", rows[:NUM_HELD_OUT])
    write_lines(arguments.folder / "train.jsonl", rows[NUM_HELD_OUT:])
    print(f"wrote models, tokenizer, {len(rows) - NUM_HELD_OUT} training sums and {NUM_HELD_OUT} held-out sums")


if __name__ == "__main__":
    main()
