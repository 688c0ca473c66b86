"""Rollout workers that outlive their run.

It must not know why one was started. Invariant: a process is called a leftover only when it runs on this machine, was
there before its `joined` event was written (so that its id was not given to another since), and looks like a process of
this project; one that this user may not look into is never called gone.
"""

import socket
import time
from collections.abc import Iterable
from typing import Literal

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
    left = [(event, fate) for event in here if (fate := _fate(event)) != "gone"]
    while left and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        left = [(event, fate) for event, _ in left if (fate := _fate(event)) != "gone"]
    for event, fate in left:
        if fate == "there":
            findings.add(
                "I8", f"worker {event.worker} is still there as process {event.pid}, and its run is not; end it"
            )
        else:
            findings.skip("I8", f"this user may not see whether process {event.pid} is still worker {event.worker}")


def _fate(event: Joined) -> Literal["there", "gone", "hidden"]:
    try:
        process = psutil.Process(event.pid)
        if process.status() == psutil.STATUS_ZOMBIE or process.create_time() > event.time + _CLOCK_SLACK_S:
            return "gone"
        # Anybody may read the command line, but the environment only its own user.
        is_ours = _is_marked(process.cmdline()) or _is_marked(process.environ())
    except psutil.AccessDenied:
        return "hidden"
    except psutil.Error:
        return "gone"
    return "there" if is_ours else "gone"


def _is_marked(words: Iterable[str]) -> bool:
    return any(mark in word for word in words for mark in _MARKS)


def _names_of_this_machine() -> set[str]:
    addresses = {address.address for several in psutil.net_if_addrs().values() for address in several}
    return {"", "localhost", socket.gethostname(), socket.getfqdn(), *addresses}
