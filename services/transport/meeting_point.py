"""Where sender and receivers of a broadcast meet: a key-value store at the learner, which passes requests and seats.

It must not know groups or weights; only text of `rounds` passes. Invariants: the store listens on the one address that
it was given; each wait has a deadline. Its calls may block when the other side is frozen, so a receiver bounds them.
"""

import json
import socket
from dataclasses import asdict
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is exported, but not to type checkers

from services.transport.rounds import Ask, Seat

_ASKS = "asks"
_STORE_TIMEOUT_S = 30.0


class Host:
    """The sender's side.

    Args:
        host: the address to listen on, at a port that the system chooses.
    """

    def __init__(self, host: str) -> None:
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
        self._num_read = 0

    def new_asks(self) -> list[Ask]:
        """The requests that came since the last call; does not wait."""
        asks = []
        while self._store.check([_ask_key(self._num_read)]):
            text = self._store.get(_ask_key(self._num_read))
            self._store.delete_key(_ask_key(self._num_read))
            asks.append(Ask(ticket=self._num_read, **json.loads(text)))
            self._num_read += 1
        return asks

    def answer(self, ticket: int, seat: Seat) -> None:
        self._store.set(_seat_key(ticket), json.dumps(asdict(seat)))


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


def _ask_key(ticket: int) -> str:
    return f"ask/{ticket}"


def _seat_key(ticket: int) -> str:
    return f"seat/{ticket}"
