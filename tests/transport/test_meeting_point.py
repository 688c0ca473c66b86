"""Requests at the store of a broadcast, also those that are no whole ones."""

import json

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is exported, but not to type checkers

from services.transport.meeting_point import Host

REQUEST = {"publication": 4, "member": "worker 1", "group": "", "num_received": 0}


@pytest.fixture
def host() -> Host:
    return Host("127.0.0.1")


def store_of(host: Host) -> TCPStore:
    """What a receiver writes to."""
    return TCPStore(*host.address, is_master=False, wait_for_workers=False, use_libuv=False)


def draw(store: TCPStore) -> int:
    return int(store.add("asks", 1)) - 1


def ask(store: TCPStore, text: str = json.dumps(REQUEST)) -> int:
    ticket = draw(store)
    store.set(f"ask/{ticket}", text)
    return ticket


def test_requests_come_once_in_the_order_of_their_tickets(host: Host) -> None:
    store = store_of(host)
    tickets = [ask(store), ask(store)]

    assert [new.ticket for new in host.new_asks()] == tickets
    assert host.new_asks() == []


def test_a_receiver_that_ends_between_ticket_and_request_holds_up_nobody(host: Host) -> None:
    store = store_of(host)
    left_open = draw(store)
    finished = ask(store)

    assert [new.ticket for new in host.new_asks()] == [finished]

    store.set(f"ask/{left_open}", json.dumps(REQUEST))
    assert [new.ticket for new in host.new_asks()] == [left_open]


def test_a_ticket_without_a_request_is_given_up_after_a_while() -> None:
    host = Host("127.0.0.1", unfinished_s=0)
    store = store_of(host)
    left_open = draw(store)
    assert host.new_asks() == []

    store.set(f"ask/{left_open}", json.dumps(REQUEST))

    assert host.new_asks() == []


@pytest.mark.parametrize("text", ["nonsense", "[1]", json.dumps(REQUEST | {"member": ["a"]}), '{"member": "a"}'])
def test_what_is_no_request_is_left_out_and_told(host: Host, text: str, caplog: pytest.LogCaptureFixture) -> None:
    store = store_of(host)
    ask(store, text)
    whole = ask(store)

    assert [new.ticket for new in host.new_asks()] == [whole]
    assert "request 0 of the weight broadcast is left out" in caplog.text
    assert host.new_asks() == []
