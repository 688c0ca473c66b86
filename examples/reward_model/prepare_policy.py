"""Write a tiny policy that answers in the style of the preferred answers, what it learns from, and what judges it.

    python examples/reward_model/prepare_policy.py runs/preferences --seed 0

It reads what `prepare.py` left in the folder. A prompt is the last question of a conversation; a demonstration is as
much of its preferred answer as ends with a sentence; a preference is such beginnings of both answers, where they
differ. Held-out prompts come from held-out conversations alone.
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY_SIZE = 2000
MOST_PROMPT_TOKENS = 55
MOST_RESPONSE_TOKENS = 40
MAX_TOKENS = 96
SIDES = ("chosen", "rejected")
QUESTION, ANSWER = "\n\nHuman:", "\n\nAssistant:"


def subword_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, made of the training conversations."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=["<pad>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", model_max_length=MAX_TOKENS
    )


def tiny_policy(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama of one million parameters with random weights."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=MAX_TOKENS,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def demonstrations(lines: Iterable[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[dict[str, str]]:
    """Last questions with the beginnings of their preferred answers, where both are short enough."""
    for line in lines:
        prompt, response = beginning(json.loads(line)["chosen"], tokenizer)
        if response and len(tokenizer.encode(prompt)) <= MOST_PROMPT_TOKENS:
            yield {"prompt": prompt, "response": response}


def preferences(lines: Iterable[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[dict[str, str]]:
    """Last questions with the beginnings of both answers, where these differ and all are short enough."""
    for line in lines:
        (prompt, chosen), (other, rejected) = (beginning(json.loads(line)[side], tokenizer) for side in SIDES)
        both_differ = prompt == other and chosen and rejected and chosen != rejected
        if both_differ and len(tokenizer.encode(prompt)) <= MOST_PROMPT_TOKENS:
            yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def beginning(transcript: str, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """The last question, and the first sentences of its answer; none where the first is too long."""
    context, _, answer = transcript.rpartition(ANSWER)
    response = ""
    for sentence in re.findall(r"[^.!?]+[.!?]+", answer):
        if len(tokenizer.encode(response + sentence)) > MOST_RESPONSE_TOKENS:
            break
        response += sentence
    return QUESTION + context.rpartition(QUESTION)[2] + ANSWER, response


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = arguments.folder
    lines = {name: (folder / f"{name}.jsonl").read_text().splitlines() for name in ("train", "held_out")}
    tokenizer = subword_tokenizer(json.loads(line)["chosen"] for line in lines["train"])
    tokenizer.save_pretrained(folder / "policy")
    tiny_policy(tokenizer, arguments.seed).save_pretrained(folder / "policy")
    for name, conversations in lines.items():
        for what, rows in (
            ("prompts", list(demonstrations(conversations, tokenizer))),
            ("pairs", list(preferences(conversations, tokenizer))),
        ):
            path = folder / f"{what}_{name}.jsonl"
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            print(f"wrote {len(rows)} {what} to {path}")


if __name__ == "__main__":
    main()
