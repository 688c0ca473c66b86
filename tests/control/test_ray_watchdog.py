"""What uses a Ray session is ended when the process that watches over it is killed, and only then."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil

SLEEP = "import sys, time; file = open(sys.argv[1]); print(flush=True); time.sleep(60)"
RUN = """
import sys, time
from pathlib import Path
from services.control.ray_watchdog import watch
with watch(Path(sys.argv[1])):
    print(flush=True)
    if sys.argv[2] == "stays":
        time.sleep(60)
"""


def started(code: str, *arguments: object) -> "subprocess.Popen[str]":
    """A Python process that has printed its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_only_who_uses_the_session_is_ended_and_only_after_a_kill(tmp_path: Path) -> None:
    (tmp_path / "session").mkdir()
    for path in (tmp_path / "session" / "log", tmp_path / "log"):
        path.touch()
    with started(SLEEP, tmp_path / "session" / "log") as user, started(SLEEP, tmp_path / "log") as other:
        try:
            with started(RUN, tmp_path / "session", "ends") as run:
                assert run.wait(timeout=10) == 0
            assert user.poll() is None
            with started(RUN, tmp_path / "session", "stays") as run:
                [watchdog] = psutil.Process(run.pid).children()
                run.kill()
            assert user.wait(timeout=20) == -signal.SIGKILL
            assert other.poll() is None
            watchdog.wait(timeout=10)
        finally:
            user.kill()
            other.kill()
