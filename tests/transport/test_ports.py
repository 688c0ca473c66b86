"""The ports that processes meet at."""

import random
import socket

import pytest

from services.contracts.errors import UserError
from services.transport import ports


def test_a_port_is_free_and_none_that_the_kernel_gives_away() -> None:
    port = ports.free_port("127.0.0.1")

    assert port in ports.PORTS
    with socket.create_server(("127.0.0.1", port)), socket.create_server(("127.0.0.1", 0)) as given:
        assert given.getsockname()[1] not in ports.PORTS


def test_two_processes_of_one_seed_are_not_sent_to_the_same_ports() -> None:
    drawn = []
    for _ in range(2):
        random.seed(7)
        drawn.append([ports.free_port("127.0.0.1") for _ in range(3)])

    assert drawn[0] != drawn[1]


def test_a_port_on_which_someone_listens_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ports.free_port("127.0.0.1")
    with socket.create_server(("127.0.0.1", first)):
        monkeypatch.setattr(ports, "PORTS", range(first, first + 1))
        with pytest.raises(UserError, match=rf"no port from {first} to {first} is free at 127\.0\.0\.1"):
            ports.free_port("127.0.0.1")
