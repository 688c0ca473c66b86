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
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median

from benchmarks.pairs import Ratio, in_turn, report
from benchmarks.reference_task import NUM_PROMPTS, NUM_SAMPLES, TIMEOUT_S, train, write_task


async def trireme_rate(folder: Path, num_steps: int, lengths: list[float]) -> float:
    """Samples per second of `trireme train`: the median over its steps but the first."""
    run = train(folder, {"train": {"num_steps": num_steps}})
    lengths.append(fmean(step["completion_tokens/mean"] for step in run.steps[1:]))
    return NUM_PROMPTS * NUM_SAMPLES / run.median("seconds/step")


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
