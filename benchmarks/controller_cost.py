"""Row 7: processor seconds of the controller per sample, as rollout workers grow from 1 to 32.

The real control plane on workers and a learner that sleep, with the times of the reference case scaled down alike. The
batch stays the same (128 prompts of 8 samples), so every further worker brings only its own cost: its syncs, and its
place in the dispatch. What the sleeping workers spend on making rollouts up is taken off. The exponent is the slope of
log cost against log workers. Sleeping, no engine.

    python -m benchmarks.controller_cost [--steps 12] [--repeats 3] [--output results.json]
"""

import argparse
import asyncio
import math
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median

from benchmarks.pairs import report
from benchmarks.sleeping_run import SleepingLearner, SleepingWorker, exponential, run_steps
from services.control.admission import AdmissionRule

NUM_WORKERS = (1, 2, 4, 8, 16, 32)
PROMPTS_PER_STEP, SAMPLES_PER_PROMPT = 128, 8
GROUP_S, LEARNER_S, LOAD_S = 0.2, 0.1, 0.005


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line through log y against log x: the exponent of a power law."""
    log_x, log_y = [math.log(value) for value in x], [math.log(value) for value in y]
    mean_x, mean_y = fmean(log_x), fmean(log_y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(log_x, log_y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in log_x)


async def cost(folder: Path, *, num_workers: int, num_steps: int) -> float:
    """Processor seconds for one sample, from its admission to the end of its step."""
    draw = random.Random(0)
    workers = [
        SleepingWorker(number, seconds=exponential(draw, GROUP_S), load_s=lambda: LOAD_S)
        for number in range(num_workers)
    ]
    rule = AdmissionRule(prompts_per_step=PROMPTS_PER_STEP, max_staleness=1)
    began = time.process_time()
    await run_steps(folder, workers, SleepingLearner(lambda: LEARNER_S), rule, num_steps=num_steps)
    spent = time.process_time() - began - sum(worker.cpu_s for worker in workers)
    return spent / (num_steps * PROMPTS_PER_STEP * SAMPLES_PER_PROMPT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    costs: dict[int, list[float]] = {num_workers: [] for num_workers in NUM_WORKERS}
    for _ in range(arguments.repeats):
        for num_workers in NUM_WORKERS:
            with tempfile.TemporaryDirectory() as folder:
                spent = asyncio.run(cost(Path(folder), num_workers=num_workers, num_steps=arguments.steps))
            costs[num_workers].append(spent)
    medians = [median(costs[num_workers]) for num_workers in NUM_WORKERS]
    facts = {
        f"7 (sleeping) µs per sample, {num_workers} workers": 1e6 * seconds
        for num_workers, seconds in zip(NUM_WORKERS, medians, strict=True)
    }
    facts["7 (sleeping) exponent"] = slope(NUM_WORKERS, medians)
    report([], output=arguments.output, facts=facts)


if __name__ == "__main__":
    main()
