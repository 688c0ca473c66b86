"""A whole GRPO step against TRL's GRPOTrainer: samples per second of both, on the same model, prompts and limits.

32 prompts of 16 tokens, 8 samples of each, at most 192 tokens, long-tailed lengths, fp32, one optimizer step; every
sample is rewarded by its share of vowels. TRL runs in its default shape (one micro-batch of 256) and tuned
(micro-batches of 32). Each side is a process of its own that has the machine to itself, in turn; its first step is not
counted. The tokens cannot be the same, since the engines draw differently; their mean lengths are printed beside.

    pip install --no-deps trl==1.16.0
    python -m benchmarks.end_to_end [--pairs 5] [--steps 3] [--output results.json]
"""

import argparse
import asyncio
import json
import random
import string
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median

import yaml

from benchmarks.pairs import Ratio, in_turn, report
from benchmarks.reference_model import write_reference_model

NUM_PROMPTS = 32
NUM_SAMPLES = 8
PROMPT_TOKENS = 16
MAX_COMPLETION_TOKENS = 192
TIMEOUT_S = 1800

REWARD = '''"""The share of vowels."""


def score(sample):
    return sum(character in "aeiou" for character in sample.completion) / max(1, len(sample.completion))
'''


def write_task(folder: Path, num_steps: int) -> None:
    """Model, prompts for every step, and the reward."""
    write_reference_model(folder / "model")
    draw = random.Random(0)
    rows = ["".join(draw.choices(string.ascii_lowercase, k=PROMPT_TOKENS)) for _ in range(NUM_PROMPTS * num_steps)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    (folder / "vowels.py").write_text(REWARD)


async def trireme_rate(folder: Path, num_steps: int, lengths: list[float]) -> float:
    """Samples per second of `trireme train`: the median over its steps but the first."""
    run = Path(tempfile.mkdtemp(dir=folder))
    sections = {
        "run": {"dir": str(run / "run")},
        "model": {"path": str(folder / "model"), "dtype": "float32", "max_length": 256},
        "data": {"prompts": str(folder / "prompts.jsonl"), "template": "plain", "shuffle": False},
        "rollout": {
            "num_workers": 2,
            "samples_per_prompt": NUM_SAMPLES,
            "max_completion_tokens": MAX_COMPLETION_TOKENS,
            "kv_cache_gib": 0.5,
        },
        "reward": {"services": [{"name": f"{folder / 'vowels.py'}:score"}]},
        "learner": {"algorithm": "grpo", "lr": 1e-6, "max_tokens_per_micro_batch": 2048},
        "train": {"num_steps": num_steps, "prompts_per_step": NUM_PROMPTS, "checkpoint_every": 0},
        "metrics": {"sinks": [], "samples_per_step": 0},
    }
    (run / "run.yaml").write_text(yaml.safe_dump(sections))
    _run("services.cli", "train", str(run / "run.yaml"))
    rows = [json.loads(line) for line in (run / "run" / "metrics.jsonl").read_text().splitlines()][1:]
    lengths.append(fmean(row["completion_tokens/mean"] for row in rows))
    return NUM_PROMPTS * NUM_SAMPLES / median(row["seconds/step"] for row in rows)


async def trl_rate(folder: Path, num_steps: int, micro_batch: int, lengths: list[float]) -> float:
    """Samples per second of TRL's trainer, likewise."""
    output = _run("benchmarks.trl_grpo", str(folder), str(num_steps), str(micro_batch))
    measured = json.loads(output.splitlines()[-1])
    lengths.append(measured["completion_tokens"])
    return NUM_PROMPTS * NUM_SAMPLES / median(measured["step_seconds"][1:])


def _run(module: str, *arguments: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    if finished.returncode != 0:
        raise SystemExit(f"{module} {' '.join(arguments)} failed:\n{finished.stdout}\n{finished.stderr}")
    return finished.stdout


async def measure(num_pairs: int, num_steps: int) -> list[Ratio]:
    """Both shapes of TRL, each in turn with Trireme."""
    ratios = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_task(folder, num_steps)
        for shape, micro_batch in (("default", NUM_PROMPTS * NUM_SAMPLES), ("tuned", NUM_PROMPTS)):
            our_lengths: list[float] = []
            their_lengths: list[float] = []
            ours, theirs = await in_turn(
                lambda lengths=our_lengths: trireme_rate(folder, num_steps, lengths),
                lambda lengths=their_lengths, size=micro_batch: trl_rate(folder, num_steps, size, lengths),
                num_pairs=num_pairs,
            )
            print(f"{shape}: mean completion {fmean(our_lengths):.1f} tokens, TRL {fmean(their_lengths):.1f}")
            name = f"1 end to end ÷ TRL GRPOTrainer, {shape}"
            ratios.append(Ratio(name=name, unit="samples/s", ours=ours, theirs=theirs, aim=3.0))
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if find_spec("trl") is None:
        raise SystemExit("this benchmark compares with TRL: pip install --no-deps trl==1.16.0")
    report(asyncio.run(measure(arguments.pairs, arguments.steps)), output=arguments.output)


if __name__ == "__main__":
    main()
