"""Runs a stage of a pipeline as a process of its own, through the same command line that a user types.

It must not know what a stage is for. Invariants: a signal reaches the stage exactly once, whether it was sent to the
terminal or to this process alone; the stage ends as its command ends on that signal, and is waited for; the kernel
kills it with this process.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

from services.control.interrupts import heeded


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a command ended: its exit code, negative where a signal killed it, and whether it was interrupted."""

    code: int
    interrupted: bool


def run_command(arguments: Sequence[str]) -> Ended:
    """Run `trireme ARGUMENTS` to its end, on the terminal of this process. Call it from the main thread."""
    interrupted = False
    process: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        if process is not None:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in heeded()}
    try:
        # A process group of its own: the terminal's Ctrl-C would else arrive twice.
        command = [sys.executable, "-m", "services.cli.tied", str(os.getpid()), *arguments]
        process = subprocess.Popen(command, process_group=0)
        code = process.wait()  # No deadline: a stage may train for days.
        return Ended(code=code, interrupted=interrupted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
