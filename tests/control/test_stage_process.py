"""A stage's process: how it ends, and how a signal reaches it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from services.control.stage_process import Ended, run_command

ROOT = Path(__file__).parents[2]


def test_the_exit_code_is_the_commands() -> None:
    assert run_command(["--help"]) == Ended(code=0, interrupted=False)
    assert run_command(["trian"]) == Ended(code=2, interrupted=False)


@contextmanager
def serving_stage() -> Iterator[tuple["subprocess.Popen[str]", psutil.Process]]:
    """A process that runs a stage, in a session of its own, and the stage: a reward server, which a signal drains."""
    script = (
        "from services.control.stage_process import run_command\n"
        "print(run_command(['reward', 'serve', 'exact_match', '--port', '0']), flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    stages: list[psutil.Process] = []
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "listening" in line, line
        stages = psutil.Process(process.pid).children()
        yield process, stages[0]
    finally:
        for each in (process, *stages):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.communicate(timeout=30)


def test_ctrl_c_is_passed_on_to_a_stage_that_the_terminal_does_not_reach_and_its_end_is_awaited() -> None:
    with serving_stage() as (process, stage):
        assert os.getpgid(stage.pid) != process.pid  # Else the terminal would signal it too.
        os.killpg(process.pid, signal.SIGINT)
        assert "Ended(code=0, interrupted=True)" in process.communicate(timeout=30)[0]
        assert not stage.is_running()


def test_a_stage_is_killed_with_the_pipeline() -> None:
    with serving_stage() as (process, stage):
        process.kill()
        gone, alive = psutil.wait_procs([stage], timeout=30)
    assert (gone, alive) == ([stage], [])
