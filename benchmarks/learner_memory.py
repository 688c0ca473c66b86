"""Peak memory of logprobs and their gradient over tokens and over the vocabulary: the learner's head, or all logits.

Each point is a process of its own, whose peak resident memory above what it held before is taken; the weights' gradient
is in it on both sides. The plain side makes logits of all tokens in float32 and their log-softmax, as a bare loop does.

    python -m benchmarks.learner_memory [--figure docs/learner_memory.svg]
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from benchmarks.charts import Chart, Line, draw
from ppo_learner.token_head import TokenHead

HIDDEN = 64
TOKENS = (256, 1024, 4096, 8192)
OVER_TOKENS = (32_000, 150_000)
"""Vocabularies with all of `TOKENS`."""
VOCABULARIES = (8_000, 32_000, 64_000, 150_000)
OVER_VOCABULARIES = 1024
"""Tokens with all of `VOCABULARIES`: few enough that the plain side holds them with each."""
MOST_LOGITS = 256_000_000
"""Of the plain side, which takes about 12 bytes for each."""
SIDES = {"head": "the learner's head", "plain": "all logits at once"}

Found = dict[str, dict[int, dict[int, float]]]
"""MiB by side, vocabulary and tokens."""


def points(side: str) -> list[tuple[int, int]]:
    """Tokens and vocabulary of each measurement of a side, each once."""
    over_tokens = [(tokens, vocabulary) for vocabulary in OVER_TOKENS for tokens in TOKENS]
    over_vocabularies = [(OVER_VOCABULARIES, vocabulary) for vocabulary in VOCABULARIES]
    both = dict.fromkeys(over_tokens + over_vocabularies)
    return [(tokens, size) for tokens, size in both if side == "head" or tokens * size <= MOST_LOGITS]


def charts(found: Found) -> list[Chart]:
    """Each side over tokens, and both over the vocabulary."""
    return [*(_over_tokens(side, found[side]) for side in SIDES), _over_vocabularies(found)]


def measure(side: str, tokens: int, vocabulary: int) -> float:
    """Bytes at the peak of one forward and backward pass, in this process."""
    torch.manual_seed(0)
    output = nn.Linear(HIDDEN, vocabulary, bias=False)
    states, targets = torch.randn(tokens, HIDDEN, requires_grad=True), torch.arange(tokens)
    before = resident_bytes()
    if side == "head":
        logprobs = TokenHead(output, SimpleNamespace(), temperature=1.0)(states, targets)[0]
    else:
        logprobs = output(states).float().log_softmax(dim=-1).gather(1, targets[:, None])
    logprobs.sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def resident_bytes() -> int:
    """What this process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measure_apart(side: str, tokens: int, vocabulary: int) -> float:
    command = [sys.executable, "-m", "benchmarks.learner_memory", "--point", side, str(tokens), str(vocabulary)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--point", nargs=3, metavar=("SIDE", "TOKENS", "VOCABULARY"))
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.point:
        side, tokens, vocabulary = arguments.point
        print(measure(side, int(tokens), int(vocabulary)))
        return
    found: Found = {side: {} for side in SIDES}
    for side in SIDES:
        for tokens, vocabulary in points(side):
            mebibytes = measure_apart(side, tokens, vocabulary) / 2**20
            found[side].setdefault(vocabulary, {})[tokens] = mebibytes
            print(f"{side:6} {vocabulary:8,} words {tokens:6,} tokens {mebibytes:8,.0f} MiB", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.figure:
        draw(charts(found), arguments.figure)


def _over_tokens(side: str, found: dict[int, dict[int, float]]) -> Chart:
    lines = [
        Line(label=f"vocabulary {vocabulary:,}", x=list(found[vocabulary]), y=list(found[vocabulary].values()))
        for vocabulary in OVER_TOKENS
    ]
    return Chart(title=f"{SIDES[side]}, MiB", x="tokens of a micro-batch", lines=lines, log=True)


def _over_vocabularies(found: Found) -> Chart:
    lines = [
        Line(label=label, x=VOCABULARIES, y=[found[side][size][OVER_VOCABULARIES] for size in VOCABULARIES])
        for side, label in SIDES.items()
    ]
    return Chart(title=f"{OVER_VOCABULARIES:,} tokens, MiB", x="vocabulary", lines=lines, log=True)


if __name__ == "__main__":
    main()
