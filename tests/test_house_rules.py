"""The rules that keep the code readable: lengths, docstrings, the tree in the README, fresh protos, the lock."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("services", "ppo_learner", "rollout_workers", "reward_server")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def tracked_files() -> list[Path]:
    """Files of the project: what git tracks or would track, or everything where there is no git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


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
    silent = [
        path
        for path in python_files()
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_the_readme_shows_every_file_of_the_packages_once_with_a_phrase() -> None:
    readme = (ROOT / "README.md").read_text()
    tree = re.search(r"<!-- tree -->\n```\n(.*?)```", readme, re.DOTALL)
    assert tree, "README.md has no tree between <!-- tree --> and the end of its code block"
    shown = set()
    folders: list[str] = []
    for line in tree.group(1).splitlines():
        entry = re.match(r"( *)(\S+?)(/?)  +\S", line)
        assert entry, f"a line of the tree without a phrase: {line!r}"
        depth = len(entry.group(1)) // 2
        folders[depth:] = [entry.group(2)]
        if not entry.group(3):
            shown.add("/".join(folders))
    actual = {
        str(path.relative_to(ROOT))
        for path in tracked_files()
        if path.relative_to(ROOT).parts[0] in PACKAGES
        and path.name not in ("__init__.py", "py.typed")
        and "_pb2" not in path.name
    }
    in_packages = {name for name in shown if name.split("/")[0] in PACKAGES}
    assert in_packages == actual


def test_the_generated_protos_are_fresh(tmp_path: Path) -> None:
    proto = Path("services/protos/reward/v1/reward.proto")
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", str(proto)]
    outputs = [f"--{kind}={tmp_path}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    subprocess.run([*command, *outputs], cwd=ROOT, check=True, timeout=60)
    for generated in (tmp_path / proto.parent).iterdir():
        committed = ROOT / proto.parent / generated.name
        assert generated.read_text() == committed.read_text(), f"{committed.name} is stale: run `make protos`"


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


def test_no_path_of_one_machine_is_committed() -> None:
    pattern = re.compile(rb"/(?:farm|work|root|home)/[\w.]")
    guilty = [
        str(path.relative_to(ROOT))
        for path in tracked_files()
        if path.suffix != ".gz" and pattern.search(path.read_bytes())
    ]
    assert guilty == []
