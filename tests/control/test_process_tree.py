"""Which processes are ended, and which are left alone."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from services.control.process_tree import end_process_tree, start_ticks

PARENT = """
import subprocess, sys, time
for session in (False, True):
    print(subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, start_new_session=session).pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def family() -> Iterator[tuple["subprocess.Popen[str]", list[psutil.Process]]]:
    """A leader of a process group, with a child in the group and one in a session of its own."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, process_group=0)
    assert parent.stdout
    children = [psutil.Process(int(parent.stdout.readline())) for _ in range(2)]
    yield parent, children
    for process in [psutil.Process(parent.pid), *children] if parent.poll() is None else children:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    parent.communicate(timeout=10)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return psutil.wait_procs(processes, timeout=5)[1]


def test_a_frozen_process_ends_with_all_its_children(
    family: tuple["subprocess.Popen[str]", list[psutil.Process]],
) -> None:
    parent, children = family
    started = start_ticks(parent.pid)
    assert started is not None
    psutil.Process(parent.pid).suspend()
    end_process_tree(parent.pid, started)
    assert not psutil.pid_exists(parent.pid)
    assert alive(children) == []


def test_the_group_of_a_process_that_is_gone_ends(
    family: tuple["subprocess.Popen[str]", list[psutil.Process]],
) -> None:
    parent, children = family
    started = start_ticks(parent.pid)
    assert started is not None
    parent.kill()
    parent.wait(timeout=5)
    end_process_tree(parent.pid, started)
    assert alive(children[:1]) == []


def test_another_process_with_the_same_pid_is_left_alone(
    family: tuple["subprocess.Popen[str]", list[psutil.Process]],
) -> None:
    parent, children = family
    started = start_ticks(parent.pid)
    assert started is not None
    end_process_tree(parent.pid, started - 1)
    assert parent.poll() is None
    assert all(child.is_running() for child in children)
