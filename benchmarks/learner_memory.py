"""Peak memory of logprobs and their gradient as sequences and vocabulary grow: the learner's head against all logits.

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
VOCABULARIES = (32_000, 150_000)
TOKENS = (256, 1024, 4096, 8192)
MOST_LOGITS = 256_000_000
"""Of the plain side, which takes about 12 bytes for each."""


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
    mebibytes: dict[str, dict[int, dict[int, float]]] = {}
    for side in ("head", "plain"):
        for vocabulary in VOCABULARIES:
            for tokens in TOKENS:
                if side == "head" or tokens * vocabulary <= MOST_LOGITS:
                    found = measure_apart(side, tokens, vocabulary) / 2**20
                    mebibytes.setdefault(side, {}).setdefault(vocabulary, {})[tokens] = found
                    print(f"{side:6} {vocabulary:8,} words {tokens:6,} tokens {found:8,.0f} MiB", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(mebibytes, indent=2) + "\n")
    if arguments.figure:
        draw([_chart(side, title, mebibytes[side]) for side, title in _TITLES.items()], arguments.figure)


_TITLES = {"head": "the learner's head, MiB", "plain": "all logits at once, MiB"}


def _chart(side: str, title: str, points: dict[int, dict[int, float]]) -> Chart:
    lines = [
        Line(label=f"vocabulary {vocabulary:,}", x=list(found), y=list(found.values()))
        for vocabulary, found in points.items()
    ]
    return Chart(title=title, x="tokens of a micro-batch", lines=lines, log=True)


if __name__ == "__main__":
    main()
