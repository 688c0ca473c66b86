"""What every training command does around its run: hold the folder, and tell how to go on when it ends early.

It must not know what is trained.
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from services.contracts.errors import TriremeError
from services.control import run_folder
from services.control.config import TrainerRoot
from services.control.report import write_report
from services.control.run_state import committed

INTERRUPTED = 130
"""Exit code of a command that was stopped by Ctrl-C."""


def run_in_folder(
    config: TrainerRoot,
    argv: Sequence[str],
    *,
    command: str,
    resume: bool,
    work: Callable[[], bool],
) -> int:
    """Hold the run's folder while `work` runs, then write the report.

    Args:
        argv: the command's arguments without --resume, to be shown in the command that resumes.
        work: does the run, and returns whether it was interrupted.

    Returns:
        The exit code.
    """
    folder = config.run.dir
    with run_folder.hold(folder, resume=resume):
        run_folder.write_config(folder, config)
        try:
            interrupted = work()
        except (TriremeError, KeyboardInterrupt):
            print_resume(folder, f"{command} {shlex.join(argv)}")
            raise
        if (folder / run_folder.METRICS_FILE).exists():
            write_report(folder)
    if interrupted:
        print_resume(folder, f"{command} {shlex.join(argv)}")
        return INTERRUPTED
    return 0


def print_resume(folder: Path, command: str) -> None:
    """Tell which checkpoint is the newest, and how to go on from it."""
    checkpoints = committed(folder / run_folder.CHECKPOINTS)
    if checkpoints:
        print(f"last checkpoint: {checkpoints[0]}\ngo on with: {command} --resume", file=sys.stderr)
