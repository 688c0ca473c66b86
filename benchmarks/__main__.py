"""All benchmarks, one after the other, each in a process of its own: `make bench`, or python -m benchmarks [NAME ...].

Results are printed, and written as JSON to runs/benchmarks/. Three more are run by hand: `calibrate`, which
measures what the simulator is held against, `staleness_curve` and `algorithm_table`.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

BENCHMARKS = (
    "rollout_throughput",
    "weight_sync",
    "learner_throughput",
    "learner_padding",
    "learner_memory",
    "sequence_parallel",
    "zero_stages",
    "end_to_end",
    "overlap",
    "streaming",
    "staleness_bound",
    "controller_cost",
    "worker_loss",
    "changing_workers",
    "replica_loss",
    "simulator",
    "reward_calls",
    "light_import",
    "reward_model_serving",
    "preference_table",
    "code_programs",
)
RESULTS = Path("runs/benchmarks")


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        print(f"there are no benchmarks {unknown}; choose from {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    RESULTS.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in names or BENCHMARKS:
        if name == "end_to_end" and find_spec("trl") is None and not names:
            print("end_to_end left out: it compares with TRL; pip install --no-deps trl==1.16.0")
            continue
        command = [sys.executable, "-m", f"benchmarks.{name}", "--output", str(RESULTS / f"{name}.json")]
        if subprocess.run(command, check=False).returncode != 0:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
