"""What a run's Ray left behind is ended with the run's process, however that ends; what is not the run's stays."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from services.control.ray_watchdog import TOKEN_VARIABLE, watched

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
RUN = f"""
import os, subprocess, sys, time
from services.control.ray_watchdog import watched
with watched("token-of-a-run"):
    os.environ["{TOKEN_VARIABLE}"] = "token-of-a-run"
    child = subprocess.Popen({SLEEP!r}, start_new_session=True)
    print(child.pid, flush=True)
    time.sleep(60)
"""


@contextmanager
def sleeper(token: str) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(SLEEP, env=os.environ | {TOKEN_VARIABLE: token}) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_process_of_the_run_does_not_outlive_the_block_and_another_does() -> None:
    with sleeper("mine") as mine, sleeper("of another run") as other:
        with watched("mine"):
            assert mine.poll() is None
        assert mine.wait(timeout=5) != 0
        assert other.poll() is None


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_a_process_of_the_run_does_not_outlive_the_run_s_process(how: str) -> None:
    with subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        child = psutil.Process(int(run.stdout.readline()))
        getattr(run, how)()
    child.wait(timeout=10)
