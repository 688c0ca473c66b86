"""Ray clusters of the tests' own, with any number of nodes on this machine, each of which can be killed and frozen.

It must not touch another Ray that runs here. Invariants: the cluster asks for a token; each node besides the head has
a shared memory of its own where this machine allows it; nothing outlives the context.
"""

import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import ray
from ray._private.authentication_test_utils import authentication_env_guard, reset_auth_token_state

from services.transport.ports import free_port

START_TIMEOUT_S = 120
STORE_BYTES = 80 * 2**20
TOKEN = "c0ffee" * 8

OWN_SHARED_MEMORY = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh"]

# A node that does not answer is given up after about four seconds instead of a minute.
QUICK_TO_NOTICE = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}


class Node:
    """One node: `ray start --block` with all that it starts, which stands for a machine."""

    def __init__(self, name: str, launch: Callable[[], "subprocess.Popen[bytes]"]) -> None:
        self.name = name
        self._launch = launch
        self._process = launch()

    def start_again_if_ended(self) -> None:
        """Ray's own daemon ends now and then when it finds a port taken that it chose a moment before."""
        if self._process.poll() is not None:
            self._process = self._launch()

    @property
    def node_id(self) -> str:
        return next(node["NodeID"] for node in ray.nodes() if node["NodeName"] == self.name)

    def freeze(self) -> None:
        """Stop the whole machine; it neither answers nor closes a connection."""
        for member in self.family():
            member.suspend()

    def thaw(self) -> None:
        """Let it go on, and find out that it was given up."""
        for member in self.family():
            with suppress(psutil.NoSuchProcess):
                member.resume()

    def kill(self) -> None:
        """Lose the machine with all that runs there."""
        kill_all([self])

    def family(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        return []


@dataclass(frozen=True, kw_only=True, slots=True)
class Nodes:
    """A cluster: the head's address, the environment to join it with, and its nodes, the head first."""

    address: str
    environment: Mapping[str, str]
    nodes: Sequence[Node]


@contextmanager
def ray_nodes(*num_cpus: int, dashboard_port: int | None = None, **variables: str) -> Iterator[Nodes]:
    """A cluster of so many nodes, with so many logical cores each; the first is the head.

    Args:
        dashboard_port: where the head's dashboard, and with it the job server, answers on loopback; None for neither.
        variables: further ones of the nodes' environment.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # A short path: sockets lie in it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_worker_niceness": "0", **QUICK_TO_NOTICE}
    environment |= variables
    host = ray.util.get_node_ip_address()
    address = f"{host}:{free_port(host)}"
    nodes: list[Node] = []
    try:
        head = ["--head", f"--port={address.rpartition(':')[2]}", *_dashboard(dashboard_port)]
        nodes.append(_start("head", num_cpus[0], head, environment, folder))
        _wait_for(address, folder / "head")
        for number, cpus in enumerate(num_cpus[1:], 1):
            arguments = [f"--address={address}"]
            nodes.append(_start(f"node-{number}", cpus, arguments, environment, folder, _own_shared_memory()))
        cluster = Nodes(address=address, environment=environment, nodes=nodes)
        _wait_for_nodes(cluster)
        yield cluster
    finally:
        kill_all(nodes)
        shutil.rmtree(folder, ignore_errors=True)


def let_commands_join(cluster: Nodes, patched: pytest.MonkeyPatch) -> None:
    """Commands that this process starts find the cluster, and have its token."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        patched.setenv(name, cluster.environment[name])
    patched.setenv("RAY_ADDRESS", cluster.address)


@contextmanager
def joined(cluster: Nodes) -> Iterator[None]:
    """This process may join the cluster as a run does, which reads the token when it starts."""
    with authentication_env_guard(), pytest.MonkeyPatch.context() as patched:
        let_commands_join(cluster, patched)
        reset_auth_token_state()
        yield
    reset_auth_token_state()


def kill_all(nodes: Sequence[Node]) -> None:
    """Lose these machines at once."""
    family = [member for node in nodes for member in node.family()]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    _, left = psutil.wait_procs(family, timeout=10)
    assert left == []


def _dashboard(port: int | None) -> Sequence[str]:
    if port is None:
        return ["--include-dashboard=false"]
    # The agent of each node, which starts the jobs, has one and the same port by default.
    return ["--include-dashboard=true", f"--dashboard-port={port}", "--dashboard-agent-listen-port=0"]


def _start(
    name: str,
    num_cpus: int,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    prefix: Sequence[str] = (),
) -> Node:
    command = [
        *prefix,
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
        *(f"--node-name={name}", f"--num-cpus={num_cpus}", f"--object-store-memory={STORE_BYTES}", *arguments),
        f"--temp-dir={folder / name[-1]}",
    ]

    def launch() -> "subprocess.Popen[bytes]":
        with (folder / name).open("w") as output:
            return subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)

    return Node(name, launch)


def _own_shared_memory() -> Sequence[str]:
    allowed = subprocess.run([*OWN_SHARED_MEMORY, "true"], check=False, capture_output=True, timeout=10)
    return OWN_SHARED_MEMORY if allowed.returncode == 0 else ()


def _wait_for(address: str, output: Path) -> None:
    host, _, port = address.partition(":")
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        time.sleep(0.05)
    raise AssertionError(f"waited {START_TIMEOUT_S} s for Ray's head: {output.read_text()}")


def _wait_for_nodes(cluster: Nodes) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    with joined(cluster):
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            while sum(node["Alive"] for node in ray.nodes()) < len(cluster.nodes):
                assert time.monotonic() < deadline, f"waited {START_TIMEOUT_S} s for all nodes: {ray.nodes()}"
                for node in cluster.nodes[1:]:
                    node.start_again_if_ended()
                time.sleep(0.05)
        finally:
            ray.shutdown()
