"""The light install, `pip install trireme-rlhf` without extras: it serves rewards, and it starts fast."""

import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.reward_server.test_processes import ROOT, environment

PYDANTIC = {"pydantic", "pydantic-core", "annotated-types", "typing-extensions", "typing-inspection"}

SERVE = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in %r:
            raise ImportError(f"{name} is not in the light install")

sys.meta_path.insert(0, Refuse())
import asyncio
from reward_server.assembly import build_scorer
from reward_server.config import RewardConfig, RewardServerConfig, RewardServiceConfig
from reward_server.server import RewardServer
from services.cli import reward
from services.contracts.records import RewardSample
from services.transport.reward_client import RewardClient
from services.transport.reward_conformance import check_service

async def main():
    services = [RewardServiceConfig(name="math_answer", isolate=False)]
    config = RewardServerConfig(port=0, metrics_port=0)
    server = RewardServer(build_scorer(services, config), config)
    client = RewardClient([await server.start()])
    sample = RewardSample(id="a", completion="$\\\\frac{1}{2}$", reference={"answer": "\\\\frac{2}{4}"})
    (outcome,) = await client.score([sample])
    print(outcome.value)
    await client.close()
    await server.drain()

asyncio.run(main())
"""


def light_packages() -> set[str]:
    """The packages in pyproject's `dependencies`, and what they need in turn."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: set[str] = set()
    wanted = [Requirement(text) for text in project["dependencies"]]
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        try:
            wanted += [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            assert requirement.marker, f"{name} is not installed"
    return found


def test_rewards_are_served_scored_and_checked_with_the_light_packages_alone() -> None:
    light = light_packages() | {"trireme-rlhf"}
    modules = packages_distributions()
    refused = {module for module, owners in modules.items() if not light.intersection(map(canonicalize_name, owners))}
    assert {"torch", "ray", "vllm", "deepspeed", "transformers", "numpy"} <= refused
    ended = subprocess.run(
        [sys.executable, "-c", SERVE % (sorted(refused),)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.stdout == "1.0\n", ended.stderr


def test_importing_the_package_loads_nothing_heavier_than_pydantic() -> None:
    measure = "import sys; before = set(sys.modules); import reward_server; print(*sorted(set(sys.modules) - before))"
    ended = subprocess.run(
        [sys.executable, "-c", measure],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    loaded = {module.partition(".")[0] for module in ended.stdout.split()}
    modules = packages_distributions()

    foreign = {canonicalize_name(owner) for module in loaded for owner in modules.get(module, ())} - {"trireme-rlhf"}

    assert "reward_server" in loaded
    assert foreign <= PYDANTIC


def test_importing_the_package_takes_less_than_300_ms_of_processor_time() -> None:
    """The least of a few runs, as a busy machine adds to some; `benchmarks.light_import` compares it with pydantic."""
    measure = "import time; start = time.process_time(); import reward_server; print(time.process_time() - start)"
    runs = [
        subprocess.run(
            [sys.executable, "-c", measure],
            cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=True,
        )
        for _ in range(5)
    ]  # fmt: skip

    assert min(float(ended.stdout) for ended in runs) < 0.3
