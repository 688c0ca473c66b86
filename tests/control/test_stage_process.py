"""A stage's process: how it ends, and how a signal reaches it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from services.control.stage_process import Ended, run_command

ROOT = Path(__file__).parents[2]


def test_the_exit_code_is_the_commands() -> None:
    assert run_command(["--help"]) == Ended(code=0, interrupted=False)
    assert run_command(["trian"]) == Ended(code=2, interrupted=False)


def test_ctrl_c_is_passed_on_to_a_stage_that_the_terminal_does_not_reach_and_its_end_is_awaited() -> None:
    """The stage is a reward server, which a signal drains."""
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
        assert os.getpgid(stages[0].pid) != process.pid  # Else the terminal would signal it too.
        os.killpg(process.pid, signal.SIGINT)
        rest = process.communicate(timeout=30)[0]
    finally:
        process.kill()
        left = [stage for stage in stages if stage.is_running()]
        for stage in left:
            stage.kill()
    assert "Ended(code=0, interrupted=True)" in rest
    assert left == []
