"""The reward service in Node.js: installed from its lock, conforming, scored by the real client."""

import asyncio
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from services.contracts.records import Failure, FailureCode, Reward, StepReward
from services.transport.reward_conformance import check_service
from tests.reward_server.serving import listening, make_sample
from tests.reward_server.test_processes import EXAMPLES, ROOT, client_of

INSTALL_S = 60.0

pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="Node.js and npm are not installed")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with its packages, beside the protos as in the repository."""
    copied = tmp_path_factory.mktemp("checkout")
    (copied / "services").symlink_to(ROOT / "services")
    ignored = shutil.ignore_patterns("node_modules")
    folder = Path(shutil.copytree(EXAMPLES / "nodejs", copied / "examples" / "rewards" / "nodejs", ignore=ignored))
    try:
        subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=folder, check=True, capture_output=True, text=True, timeout=INSTALL_S,
        )  # fmt: skip
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = error.stderr or b"nothing within the time"
        pytest.fail(f"npm could not install {folder}/package-lock.json; is its registry reachable?\n{said!s:.2000}")
    return folder


async def test_it_scores_for_the_client_keeps_the_contract_and_drains(example: Path) -> None:
    with listening(["node", "server.js", "0"], cwd=example) as (server, address):
        async with client_of(address) as client:
            scored, refused = await client.score(
                [
                    make_sample(0, completion="🚣🏽 red 𝔟𝔩𝔲𝔢", keywords=["𝔟𝔩𝔲𝔢", "red", "green", "grey"]),
                    make_sample(1, completion="red", keywords="red"),
                ]
            )

        async def stop() -> None:
            server.send_signal(signal.SIGTERM)

        check = check_service(address, reference={"keywords": ["answer"]}, stop=stop)
        findings = [finding async for finding in check]
        exit_code = await asyncio.to_thread(server.wait, 10.0)

    # Steps count code points, of which an astral character is one and its UTF-16 two.
    assert scored == Reward(
        value=0.5, steps=(StepReward(start=3, end=6, value=1.0), StepReward(start=7, end=11, value=1.0))
    )
    assert isinstance(refused, Failure) and refused.code is FailureCode.INVALID_SAMPLE
    assert "reference.keywords must be a list of words" in refused.message
    assert [finding for finding in findings if finding.verdict != "passed"] == []
    assert exit_code == 0
