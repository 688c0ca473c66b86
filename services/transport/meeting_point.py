"""Where sender and receivers of a broadcast meet: a key-value store at the learner, which passes requests and seats.

It must not know groups or weights; only text of `rounds` passes. Invariants: the store listens on the one address that
it was given; no request waits for another one, which its receiver may have died over; each wait has a deadline. Its
calls may block when the other side is frozen, so a receiver bounds them.
"""

import json
import logging
import socket
import time
from dataclasses import asdict
from datetime import timedelta

from pydantic import TypeAdapter
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is exported, but not to type checkers

from services.transport.rounds import Ask, Seat

_ASKS = "asks"
_STORE_TIMEOUT_S = 30.0
_ASK = TypeAdapter(Ask)
_log = logging.getLogger(__name__)


class Host:
    """The sender's side.

    Args:
        host: the address to listen on, at a port that the system chooses.
        unfinished_s: seconds until a ticket that was drawn, and for which no request came, is given up.
    """

    def __init__(self, host: str, *, unfinished_s: float = _STORE_TIMEOUT_S) -> None:
        listener = socket.create_server((host, 0))
        self.address = (host, int(listener.getsockname()[1]))
        # Only the store without libuv takes a socket that is already bound; by itself it binds every interface.
        self._store = TCPStore(
            host,
            self.address[1],
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=_STORE_TIMEOUT_S),
            master_listen_fd=listener.detach(),
            use_libuv=False,
        )
        self._unfinished_s = unfinished_s
        self._num_drawn = 0
        self._unread: dict[int, float] = {}

    def new_asks(self) -> list[Ask]:
        """The requests that came since the last call, by ticket; does not wait, and leaves out what is no request."""
        now = time.monotonic()
        drawn = range(self._num_drawn, self._store.add(_ASKS, 0))
        self._num_drawn = drawn.stop
        self._unread |= dict.fromkeys(drawn, now + self._unfinished_s)
        come = [ticket for ticket in self._unread if self._store.check([_ask_key(ticket)])]
        texts = {ticket: self._take(_ask_key(ticket)) for ticket in come}
        self._unread = {ticket: end for ticket, end in self._unread.items() if ticket not in texts and end > now}
        return [ask for ticket, text in texts.items() if (ask := _parsed(ticket, text)) is not None]

    def answer(self, ticket: int, seat: Seat) -> None:
        self._store.set(_seat_key(ticket), json.dumps(asdict(seat)))

    def _take(self, key: str) -> bytes:
        value: bytes = self._store.get(key)
        self._store.delete_key(key)
        return value


class Guest:
    """A receiver's side. Its calls raise `torch.distributed.DistError` when nobody answers in time."""

    def __init__(self, address: tuple[str, int], *, timeout_s: float) -> None:
        host, port = address
        timeout = timedelta(seconds=timeout_s)
        self._store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout, use_libuv=False)

    def ask(self, *, publication: int, member: str, group: str, num_received: int, timeout_s: float) -> Seat:
        """Ask to take part, and wait for a seat."""
        ticket = self._store.add(_ASKS, 1) - 1
        text = {"publication": publication, "member": member, "group": group, "num_received": num_received}
        self._store.set(_ask_key(ticket), json.dumps(text))
        self._store.wait([_seat_key(ticket)], timedelta(seconds=timeout_s))
        seat = Seat(**json.loads(self._store.get(_seat_key(ticket))))
        self._store.delete_key(_seat_key(ticket))
        return seat


def _parsed(ticket: int, text: bytes) -> Ask | None:
    try:
        return _ASK.validate_python({**json.loads(text), "ticket": ticket})
    except (TypeError, ValueError) as error:
        _log.warning("request %d of the weight broadcast is left out: %r is none (%s)", ticket, text[:200], error)
        return None


def _ask_key(ticket: int) -> str:
    return f"ask/{ticket}"


def _seat_key(ticket: int) -> str:
    return f"seat/{ticket}"
