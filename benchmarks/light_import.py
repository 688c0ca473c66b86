"""What `import reward_server` costs a reward author, beside pydantic and asyncio alone, in processor time.

    python -m benchmarks.light_import [--pairs 9] [--output FILE]

What may be loaded at all is held by `tests/reward_server/test_light_install.py`.
"""

import argparse
import asyncio
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks.pairs import Ratio, in_turn, report


async def imports_per_second(statement: str) -> float:
    timed = f"import time; start = time.process_time(); {statement}; print(time.process_time() - start)"
    ended = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", timed], capture_output=True, text=True, timeout=60, check=True
    )
    return 1 / float(ended.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    ours, theirs = asyncio.run(
        in_turn(
            lambda: imports_per_second("import reward_server"),
            lambda: imports_per_second("import pydantic.fields, asyncio"),
            num_pairs=arguments.pairs,
        )
    )
    ratio = Ratio(name="reward_server ÷ pydantic and asyncio", unit="imports/s", ours=ours, theirs=theirs, aim=0.5)
    report([ratio], output=arguments.output, facts={"seconds an import takes": 1 / median(ours)})


if __name__ == "__main__":
    main()
