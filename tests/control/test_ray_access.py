"""No, wrong and right token at a Ray cluster, and clusters that ask for none or do not answer."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from services.contracts.errors import UserError
from services.control.ray_access import check_access
from tests.ray_nodes import TOKEN, Nodes, ray_nodes

WRONG = "decaf0" * 8

JOIN = """
import asyncio, sys
from services.control.cluster import Cluster
from services.control.config import ClusterConfig
from services.control.placement import Demand

class Greeter:
    def greet(self):
        return "hello"

async def main():
    demand = Demand(name="greeter", cpus=1)
    with Cluster(ClusterConfig(address=sys.argv[1]), [demand]) as cluster:
        room = await cluster.reserve(demand, timeout_s=10)
        print(await cluster.spawn(Greeter, room, {}, environment={}).call("greet", timeout_s=20))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def guarded() -> Iterator[Nodes]:
    with ray_nodes(1) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def no_token_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # So that whatever the test leaves there is taken back.
        monkeypatch.delenv(name)


def refusal(address: str, *, allow_unauthenticated: bool = False) -> str:
    """The error, which must come within seconds and give no token away."""
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        check_access(address, allow_unauthenticated=allow_unauthenticated)
    assert time.monotonic() - started < 8
    assert TOKEN not in str(caught.value)
    assert WRONG not in str(caught.value)
    return str(caught.value)


def test_a_missing_token_is_named(guarded: Nodes) -> None:
    error = refusal(guarded.address)
    assert f"the Ray cluster at {guarded.address} asks for a token" in error
    assert "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN" in error


@pytest.mark.parametrize("setting", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_wrong_token_is_told_by_its_setting(
    setting: str, guarded: Nodes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(f"{WRONG}\n")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv(setting, WRONG if setting == "RAY_AUTH_TOKEN" else str(tmp_path / "token"))
    assert f"refuses the token in {setting}; set it to the cluster's own" in refusal(guarded.address)


def test_a_token_that_ray_would_not_send_is_told_by_the_mode(guarded: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert "RAY_AUTH_MODE is not 'token'" in refusal(guarded.address)


def test_with_the_right_token_a_process_is_started_in_the_cluster(guarded: Nodes) -> None:
    joined = subprocess.run(
        [sys.executable, "-c", JOIN, guarded.address],
        check=False,
        env={**guarded.environment, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert joined.stdout.strip() == "hello", joined.stderr


@pytest.fixture
def open_head() -> Iterator[int]:
    """The port of a head that answers whoever asks."""
    answer = grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", {"CheckAlive": answer}),)
    )
    port = server.add_insecure_port("0.0.0.0:0")
    server.start()
    yield port
    server.stop(grace=None).wait(5)


def test_a_cluster_without_a_token_is_joined_on_loopback_or_where_it_is_allowed(open_head: int) -> None:
    check_access(f"127.0.0.1:{open_head}", allow_unauthenticated=False)
    check_access(f"0.0.0.0:{open_head}", allow_unauthenticated=True)


def test_a_cluster_without_a_token_is_refused_off_loopback(open_head: int) -> None:
    error = refusal(f"0.0.0.0:{open_head}")
    assert "asks for no token" in error
    assert "cluster.allow_unauthenticated: true" in error


def test_a_token_for_a_cluster_that_asks_for_none_is_refused(open_head: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert "RAY_AUTH_MODE is set" in refusal(f"127.0.0.1:{open_head}")


def test_a_head_that_is_frozen_is_told_within_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert f"no Ray cluster answers at cluster.address='{address}'" in refusal(address)
