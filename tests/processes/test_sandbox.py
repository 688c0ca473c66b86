"""The sandbox as its server uses it: what it gives programs, and what becomes of them."""

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest

from services.processes.sandbox import LAUNCH, Sandbox, SandboxBroken, SandboxLimits
from tests.reward_server.serving import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_programs_run_side_by_side_and_apart(sandbox: Sandbox) -> None:
    program = "import os, sys; name = input(); open('/tmp/' + name, 'w').close(); print(name, os.listdir('/tmp'))"
    ended = await asyncio.gather(*(sandbox.run_script(program, f"n{n}", wall_s=30.0) for n in range(8)))
    assert [each.output for each in ended] == [f"n{n} ['n{n}']\n".encode() for n in range(8)]


async def test_what_programs_usually_do_works(sandbox: Sandbox) -> None:
    program = """
import asyncio, atexit, collections, dataclasses, datetime, decimal, hashlib, json, os, re, sqlite3, statistics, sys
import tempfile, threading
sys.setrecursionlimit(10_000)
def depth(n): return 0 if n == 0 else 1 + depth(n - 1)
async def soon(): await asyncio.sleep(0.001); return depth(5_000)
@dataclasses.dataclass
class Point: x: int
with tempfile.TemporaryFile("w+") as file:
    file.write("text")
database = sqlite3.connect(":memory:").execute("select 1").fetchone()
print(asyncio.run(soon()), Point(3), hashlib.sha256(b"").hexdigest()[:4], database, flush=True)
buffer = []
atexit.register(lambda: os.write(1, "".join(buffer).encode()))
threading.Thread(target=lambda: buffer.append(sys.stdin.read())).start()
"""
    ended = await sandbox.run_script(program, "the end", wall_s=30.0)
    assert ended.output == b"5000 Point(x=3) e3b0 (1,)\nthe end", ended
    assert ended.exit_code == 0


async def test_chance_is_the_same_each_time(sandbox: Sandbox) -> None:
    program = "import random; print(random.random(), list({'a', 'b', 'c', 'd'}))"
    one, other = [await sandbox.run_script(program, "", wall_s=30.0) for _ in range(2)]
    assert one.output == other.output


async def test_packages_are_there_where_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "guest_package.py").write_text("answer = 42")
    tmp_path.chmod(0o755)  # Programs are run by nobody.
    program = "import guest_package; print(guest_package.answer)"
    seen = []
    for python_path in ((), (tmp_path,)):
        sandbox = Sandbox(SandboxLimits(python_path=python_path))
        await sandbox.start()
        seen.append((await sandbox.run_script(program, "", wall_s=30.0)).output)
        await sandbox.close()
    assert seen == [b"", b"42\n"]


def is_confined(process: psutil.Process) -> bool:
    """Whether its system calls are filtered, which is the last thing before it is the program's."""
    try:
        return "Seccomp:\t2" in Path(f"/proc/{process.pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def runs(process: psutil.Process) -> bool:
    """Whether it is alive: an orphan that has ended stays a zombie until init has time for it."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_launcher_that_dies_takes_its_programs_along_and_is_replaced(
    sandbox: Sandbox, launcher: psutil.Process
) -> None:
    running = asyncio.ensure_future(sandbox.run_script("import time; time.sleep(60)", "", wall_s=60.0))
    await until(lambda: any(map(is_confined, launcher.children(recursive=True))))
    family = launcher.children(recursive=True)
    os.kill(launcher.pid, signal.SIGKILL)

    with pytest.raises(SandboxBroken, match="without a report"):
        await running
    await until(lambda: not any(runs(process) for process in family))
    assert (await sandbox.run_script("print(1)", "", wall_s=30.0)).output == b"1\n"


async def test_a_sigterm_to_every_process_ends_none(sandbox: Sandbox, launcher: psutil.Process) -> None:
    """`ray job stop` sends one, and the run has a step to finish."""
    running = asyncio.ensure_future(sandbox.run_script("import time; time.sleep(1); print(1)", "", wall_s=60.0))
    await until(lambda: any(map(is_confined, launcher.children(recursive=True))))
    for process in (launcher, *launcher.children(recursive=True)):
        process.terminate()
    assert (await running).output == b"1\n"
    assert runs(launcher)


async def test_a_launcher_that_dies_while_it_starts_a_program_leaves_none_either(sandbox: Sandbox) -> None:
    for number in range(20):
        await sandbox.run_script("", "", wall_s=30.0)
        [launcher] = [each for each in launched() if each.ppid() == os.getpid()]
        running = asyncio.ensure_future(sandbox.run_script("while True: pass", "", wall_s=60.0))
        await until(lambda: len(launched()) > 1)
        await asyncio.sleep(number * 0.002)
        launcher.kill()
        with pytest.raises(SandboxBroken):
            await running
        await until(lambda: not launched())


def launched() -> list[psutil.Process]:
    """Every launcher that lives, its supervisors and their programs, whoever they belong to."""
    return [each for each in psutil.process_iter(["cmdline"]) if LAUNCH in (each.info["cmdline"] or ()) and runs(each)]
