"""A reader that goes away costs a command nothing but its reader."""

import os
import subprocess
import sys

from services.control.lasting_output import has_reader, lasting_output
from tests.readme_tree import ROOT


def test_a_command_whose_reader_is_gone_ends_as_it_would() -> None:
    for flags, code in ((["--help"], 0), (["train", "--help"], 0), (["reward", "--help"], 0)):
        reading, writing = os.pipe()
        os.close(reading)
        finished = subprocess.run(
            [sys.executable, "-m", "services.cli", *flags],
            cwd=ROOT,
            check=False,
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=60,
        )
        os.close(writing)
        assert (finished.returncode, finished.stderr) == (code, b"")


def test_work_goes_on_after_its_reader_is_gone() -> None:
    program = """
import sys
from services.control.lasting_output import has_reader, lasting_output
from services.control.progress import open_progress
with lasting_output(), open_progress(3, title="quickstart") as progress:
    for step in range(3):
        progress.update(step + 1, {})
    assert not has_reader()
print("done", file=sys.stderr)
"""
    reading, writing = os.pipe()
    os.close(reading)
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=False, stdout=writing, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writing)
    assert (finished.returncode, finished.stderr) == (0, b"done\n")


def test_while_it_is_read_output_is_what_it_was() -> None:
    with lasting_output():
        assert has_reader()
