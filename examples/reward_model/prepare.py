"""Split human preferences and write the shape of a tiny reward model with a tokenizer of its own.

    python examples/reward_model/prepare.py PAIRS runs/preferences --seed 0

PAIRS is a .jsonl or .jsonl.gz file with `chosen` and `rejected` transcripts, such as `harmless-base-test.jsonl.gz` of
Anthropic's hh-rlhf. Conversations that begin alike go to the same side of the split, which `split.json` writes down by
row. The tokenizer is made of the training side alone: lower-case words. The model is one wide layer that averages over
the end of the text, because two thousand pairs teach little more than which words people like.
"""

import argparse
import gzip
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import ModernBertConfig, PreTrainedTokenizerFast

NUM_HELD_OUT = 500
VOCABULARY_SIZE = 4000
MAX_TOKENS = 64

Pair = Mapping[str, str]


def read_pairs(path: Path) -> list[Pair]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def split_rows(pairs: Sequence[Pair], seed: int) -> tuple[list[int], list[int]]:
    """Rows to learn and rows to be judged on, each in ascending order; no first question is on both sides."""
    by_question: dict[str, list[int]] = {}
    for row, pair in enumerate(pairs):
        by_question.setdefault(pair["chosen"].split("\n\nAssistant:")[0], []).append(row)
    questions = sorted(by_question)
    random.Random(seed).shuffle(questions)
    held_out: list[int] = []
    for question in questions:
        if len(held_out) < NUM_HELD_OUT:
            held_out += by_question[question]
    return sorted(set(range(len(pairs))) - set(held_out)), sorted(held_out)


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token for each of the most frequent words."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unknown>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=VOCABULARY_SIZE, min_frequency=3, special_tokens=["<pad>", "<unknown>"]
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unknown>", model_max_length=MAX_TOKENS
    )


def shape(vocabulary_size: int) -> ModernBertConfig:
    """An encoder of 0.7 million parameters."""
    return ModernBertConfig(
        vocab_size=vocabulary_size,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        classifier_pooling="mean",
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        cls_token_id=None,
        sep_token_id=None,
    )


def write_lines(path: Path, rows: Iterable[object]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pairs = read_pairs(arguments.pairs)
    train, held_out = split_rows(pairs, arguments.seed)
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "train.jsonl", (pairs[row] for row in train))
    write_lines(folder / "held_out.jsonl", (pairs[row] for row in held_out))
    split = {"pairs": arguments.pairs.name, "seed": arguments.seed, "train": train, "held_out": held_out}
    (folder / "split.json").write_text(json.dumps(split) + "\n")
    tokenizer = word_tokenizer(pairs[row][side] for row in train for side in ("chosen", "rejected"))
    tokenizer.save_pretrained(folder / "model")
    shape(len(tokenizer)).save_pretrained(folder / "model")
    print(f"wrote {len(train)} pairs to learn, {len(held_out)} held out, and {len(tokenizer)} words")


if __name__ == "__main__":
    main()
