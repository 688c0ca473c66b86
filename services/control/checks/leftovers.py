"""Rollout workers that outlive their run.

It must not know why one was started. Invariant: a process is called a leftover only when it runs on this machine, was
there before its `joined` event was written (so that its id was not given to another since), and looks like a process of
this project.
"""

import socket
import time
from collections.abc import Iterable

import psutil

from services.control.checks.findings import Findings
from services.control.ledger_events import Joined

_MARKS = ("ray::", "trireme", "vllm", "RAY_")
_CLOCK_SLACK_S = 2.0
"""How far the start of a process and the time of an event may differ; both are wall-clock."""
_POLL_S = 0.2


def check_leftovers(joined: Iterable[Joined], findings: Findings, *, timeout_s: float) -> None:
    """I8, for a run that no process holds; those that are just ending are given `timeout_s`."""
    machine = _names_of_this_machine()
    here = [event for event in joined if event.node in machine]
    if not here:
        findings.skip("I8", "no worker of the run was a process on this machine")
        return
    deadline = time.monotonic() + timeout_s
    left = [event for event in here if _is_alive(event)]
    while left and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        left = [event for event in left if _is_alive(event)]
    for event in left:
        findings.add("I8", f"worker {event.worker} is still there as process {event.pid}, and its run is not; end it")


def _is_alive(event: Joined) -> bool:
    try:
        process = psutil.Process(event.pid)
        if process.status() == psutil.STATUS_ZOMBIE or process.create_time() > event.time + _CLOCK_SLACK_S:
            return False
        marks = " ".join([*process.cmdline(), *process.environ()])
    except psutil.Error:
        return False
    return any(mark in marks for mark in _MARKS)


def _names_of_this_machine() -> set[str]:
    addresses = {address.address for several in psutil.net_if_addrs().values() for address in several}
    return {"", "localhost", socket.gethostname(), socket.getfqdn(), *addresses}
