"""Goes through a ledger once for all checks, and knows which events a resume made void.

It must not know what is checked. Invariant: a check sees each event at most once, in order; a void event reaches only
what a check lists under `void`, which are the facts that outlive a resume.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from services.control.checks.findings import Findings
from services.control.ledger_events import Event, Resumed

Handlers = Mapping[type, Callable[[Any, int], None]]  # Any: each takes its own type of event
"""What to call with an event of a type and the number of its line."""


class Check(Protocol):
    """Part of the verification: told of events, it adds what is wrong to the findings it was given."""

    @property
    def valid(self) -> Handlers:
        """What to call with events that count."""
        ...

    @property
    def void(self) -> Handlers:
        """What to call with events of work that no checkpoint holds."""
        ...


def replay(events: Iterable[Event], checks: Sequence[Check], findings: Findings) -> tuple[int, int]:
    """Show every event to the checks; the events are gone through twice, because a resume speaks of what lies before.

    Returns:
        How many events there are, and how many of them are void.
    """
    assert iter(events) is not events, "the events are gone through twice; an iterator can be only once"
    ranges = _void_ranges(events)
    called = {
        False: _by_type([check.valid for check in checks]),
        True: _by_type([check.void for check in checks]),
    }
    line = num_void = index = expected = 0
    for line, event in enumerate(events, start=1):
        if event.seq != expected:
            findings.add("ledger", f"line {line} ({event.event}) has seq {event.seq}, and {expected} was next")
        expected = event.seq + 1
        while index < len(ranges) and event.seq >= ranges[index][1]:
            index += 1
        is_void = index < len(ranges) and event.seq > ranges[index][0]
        num_void += is_void
        for call in called[is_void].get(type(event), ()):
            call(event, line)
    return line, num_void


def _void_ranges(events: Iterable[Event]) -> list[tuple[int, int]]:
    """Open intervals of `seq` that are void, in order; none touches another."""
    ranges: list[tuple[int, int]] = []
    for event in events:
        if isinstance(event, Resumed):
            start = event.kept
            while ranges and ranges[-1][1] > event.kept:
                start = min(start, ranges.pop()[0])
            ranges.append((start, event.seq))
    return ranges


def _by_type(handlers: Sequence[Handlers]) -> dict[type, list[Callable[[Any, int], None]]]:  # Any: see Handlers
    called: dict[type, list[Callable[[Any, int], None]]] = {}  # Any: see Handlers
    for mapping in handlers:
        for kind, call in mapping.items():
            called.setdefault(kind, []).append(call)
    return called
