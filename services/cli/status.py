"""Show a live run and its rollout workers: once, or until it ends.

It must not know how a run comes to its numbers. Invariant: no text of the run can move the cursor or pass for markup.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from services.cli.live_run import reached, run_parser, seconds
from services.contracts.errors import ControlError
from services.contracts.run_status import RunStatus
from services.control.lasting_output import has_reader
from services.control.visible_text import visible
from services.transport.control_client import ControlClient
from services.transport.control_file import CONTROL_FILE

Show = Callable[[RunStatus], object]


def main(argv: list[str]) -> int:
    """`trireme status RUN [--json] [--watch]`"""
    parser = run_parser("status", summary="How a live run is doing.", example="runs/gsm8k --watch")
    parser.add_argument("--json", action="store_true", help="print one JSON object, or one a line with --watch")
    parser.add_argument("--watch", action="store_true", help="go on until the run ends, or Ctrl-C")
    parser.add_argument("--every-s", type=seconds, default=1.0, metavar="SECONDS", help="pause of --watch (default: 1)")
    arguments = parser.parse_args(argv)
    with reached(arguments) as client:
        if not arguments.watch:
            (_print_json if arguments.json else _print_table)(client.status())
        elif arguments.json or not sys.stdout.isatty():
            _watch(client, arguments.run, arguments.every_s, _print_json if arguments.json else _print_table)
        else:
            with Live(console=Console(), auto_refresh=False) as live:
                _watch(client, arguments.run, arguments.every_s, lambda s: live.update(_drawn(s), refresh=True))
    return 0


def _watch(client: ControlClient, run: str, every_s: float, show: Show) -> None:
    """Show the status again and again; it ends with its reader, or the run, whose control file is gone then."""
    show(client.status())
    while has_reader():
        time.sleep(every_s)
        try:
            show(client.status())
        except ControlError:
            if Path(run).is_dir() and not (Path(run) / CONTROL_FILE).exists():
                return
            raise


def _print_json(status: RunStatus) -> None:
    print(json.dumps(asdict(status)), flush=True)


def _print_table(status: RunStatus) -> None:
    Console().print(_drawn(status))


def _drawn(status: RunStatus) -> Group:
    return Group(_run_table(status), "", _worker_table(status))


def _run_table(status: RunStatus) -> Table:
    num_serving = sum(worker.phase == "serving" for worker in status.workers)
    checkpoint = "none" if status.last_checkpoint is None else f"step {status.last_checkpoint}"
    rows = {
        "run": f"{status.name}, {status.phase}",
        "step": f"{status.step:,} of {status.num_steps:,}",
        "version": f"{status.version:,}, trained at most {status.max_staleness} later",
        "prompts": f"{status.num_trained:,} trained, {status.num_running:,} under way",
        "buffer": f"{status.num_waiting:,} groups wait for the learner",
        "learner": f"waited for groups {status.learner_wait:.0%} of the last step",
        "checkpoint": checkpoint,
        "workers": f"{num_serving} serving, {len(status.workers)} there, {status.target_workers} wanted",
    }
    if status.message:
        rows["message"] = status.message
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in rows.items():
        table.add_row(name, Text(visible(text)))
    return table


def _worker_table(status: RunStatus) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("worker", "phase", "version", "groups", "machine", "process"):
        table.add_column(column, overflow="fold")
    for worker in status.workers:
        version = "" if worker.version < 0 else f"{worker.version:,}"
        pid = str(worker.pid) if worker.pid else ""
        groups = str(worker.num_outstanding)
        phase = f"{worker.phase}, slow" if worker.is_slow else worker.phase
        table.add_row(str(worker.worker), phase, version, groups, Text(visible(worker.node)), pid)
    return table
