"""A run's folder has one holder, and a run in it is not written over."""

import subprocess
import sys
from pathlib import Path

import pytest

from services.contracts.errors import UserError
from services.control.run_folder import METRICS_FILE, hold

HOLD_UNTIL_TOLD = """
import sys
from pathlib import Path
from services.control.run_folder import hold
with hold(Path(sys.argv[1]), resume=False):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_folder_in_use_names_its_holder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD_UNTIL_TOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"is in use by process {holder.pid}; wait"), hold(tmp_path, resume=False):
            pass
        holder.communicate("go\n", timeout=20)
    with hold(tmp_path, resume=False):
        pass


def test_a_run_is_resumed_and_never_written_over(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text("{}\n")
    with pytest.raises(UserError, match="already holds a run; go on with --resume"), hold(tmp_path, resume=False):
        pass
    with hold(tmp_path, resume=True):
        pass


def test_resuming_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run to go on with"), hold(tmp_path / "new", resume=True):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), hold(tmp_path / "file" / "run", resume=False):
        pass
