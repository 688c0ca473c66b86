"""Programs a second through the sandbox, against a fresh interpreter for each and no sandbox at all.

The same program (reads two numbers, prints their sum), the same number of them at the same time. Ours is what
`code_execution` does for a test case: namespaces, a root, limits and a filter made anew for each; theirs is
`python -I -S -c PROGRAM`, which starts faster than any interpreter with site packages.

    python -m benchmarks.code_programs [--pairs 5] [--programs 200] [--parallel 4] [--output results.json]
"""

import argparse
import asyncio
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.pairs import Ratio, in_turn, report
from services.processes.sandbox import Sandbox, SandboxLimits

PROGRAM = "print(sum(map(int, input().split())))"


async def sandboxed(sandbox: Sandbox) -> None:
    ended = await sandbox.run_script(PROGRAM, "3 4", wall_s=60.0)
    assert ended.output == b"7\n", ended


async def bare() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-S", "-c", PROGRAM, stdin=PIPE, stdout=PIPE)
    output, _ = await process.communicate(b"3 4")
    assert output == b"7\n", output


async def per_second(run: Callable[[], Awaitable[None]], *, programs: int, parallel: int) -> float:
    slots = asyncio.Semaphore(parallel)

    async def one() -> None:
        async with slots:
            await run()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(programs)))
    return programs / (time.perf_counter() - began)


async def measure(arguments: argparse.Namespace) -> Ratio:
    sandbox = Sandbox(SandboxLimits())
    await sandbox.start()
    size = {"programs": arguments.programs, "parallel": arguments.parallel}
    ours, theirs = await in_turn(
        lambda: per_second(lambda: sandboxed(sandbox), **size),
        lambda: per_second(bare, **size),
        num_pairs=arguments.pairs,
    )
    await sandbox.close()
    name = f"sandboxed ÷ bare programs, {arguments.parallel} at a time"
    return Ratio(name=name, unit="programs/s", ours=ours, theirs=theirs, aim=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    report([asyncio.run(measure(arguments))], output=arguments.output)


if __name__ == "__main__":
    main()
