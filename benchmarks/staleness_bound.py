"""Row 6: violations of the staleness bound in 10,000 groups, for max_staleness 0, 1 and 4.

The real control plane on 4 workers and a learner that sleep for random, long-tailed times, so that groups overtake
each other; staleness is counted from the run's events, not from what the loop says of itself. Sleeping, no engine.

    python -m benchmarks.staleness_bound [--groups 10000] [--output results.json]
"""

import argparse
import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.pairs import report
from benchmarks.reference_task import read_lines
from benchmarks.sleeping_run import SleepingLearner, SleepingWorker, exponential, run_steps
from services.control.admission import AdmissionRule

PROMPTS_PER_STEP = 16
GROUP_S, LEARNER_S, LOAD_S = 0.004, 0.002, 0.001
STALENESS = (0, 1, 4)


def staleness_of_trained(events: Iterable[Mapping[str, Any]]) -> Counter[int]:  # Any: an event's fields
    """How many groups were trained how many versions after their oldest token: step - 1 - lowest version."""
    lowest: dict[str, int] = {}
    counts: Counter[int] = Counter()
    for event in events:
        if event["event"] == "accepted":
            lowest[event["prompt"]] = event["lowest_version"]
        elif event["event"] == "trained":
            counts[event["step"] - 1 - lowest.pop(event["prompt"])] += 1
    return counts


async def count(folder: Path, *, max_staleness: int, num_groups: int) -> Counter[int]:
    draw = random.Random(max_staleness)
    workers = [
        SleepingWorker(number, seconds=exponential(draw, GROUP_S), load_s=exponential(draw, LOAD_S))
        for number in range(4)
    ]
    rule = AdmissionRule(prompts_per_step=PROMPTS_PER_STEP, max_staleness=max_staleness)
    learner = SleepingLearner(exponential(draw, LEARNER_S))
    await run_steps(folder, workers, learner, rule, num_steps=-(-num_groups // PROMPTS_PER_STEP))
    return staleness_of_trained(read_lines(folder / "events.jsonl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=10_000)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    facts: dict[str, float] = {}
    for bound in STALENESS:
        with tempfile.TemporaryDirectory() as folder:
            counts = asyncio.run(count(Path(folder), max_staleness=bound, num_groups=arguments.groups))
        total = counts.total()
        name = f"6 (sleeping) max_staleness {bound}: "
        facts[f"{name}groups"] = total
        facts[f"{name}violations"] = sum(number for stale, number in counts.items() if stale > bound)
        facts[f"{name}mean"] = sum(stale * number for stale, number in counts.items()) / total
        facts[f"{name}largest"] = max(counts)
    report([], output=arguments.output, facts=facts)


if __name__ == "__main__":
    main()
