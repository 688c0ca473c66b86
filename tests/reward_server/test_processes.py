"""Reward servers as processes: started, drained, orphaned, and driven by the client."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from reward_server.child import RewardServerChild
from reward_server.config import READY_PREFIX, RewardServerConfig, RewardServiceConfig
from services.cli import reward as command
from services.contracts.errors import UserError
from services.contracts.records import Failure, FailureCode, Reward
from services.transport.reward_client import RewardClient
from services.transport.reward_conformance import CHECKS
from tests.reward_server.serving import IMPATIENT, listening, make_sample, until

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "rewards"

SLOW_REWARD = '''
"""Says that it was called, then waits until it is told to go on."""
import pathlib, time

FOLDER = pathlib.Path(__file__).parent

def score(sample):
    (FOLDER / "called").touch()
    while not (FOLDER / "go").exists():
        time.sleep(0.005)
    return 1.0
'''

STUCK_REWARD = '''
"""Says that it was called, then never lets go of the interpreter's lock."""
import pathlib, re

def score(sample):
    (pathlib.Path(__file__).parent / "called").touch()
    re.match(r"(a+)+b", "a" * 64)
'''


@contextmanager
def process(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A Python process that prints where it listens; gives itself and the address."""
    with listening([sys.executable, *map(str, arguments)], cwd=ROOT, env=environment()) as started:
        yield started


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


@asynccontextmanager
async def client_of(address: str) -> AsyncIterator[RewardClient]:
    client = RewardClient([address], IMPATIENT)
    yield client
    await client.close()


@pytest.fixture
def slow_reward(tmp_path: Path) -> Path:
    path = tmp_path / "slow.py"
    path.write_text(SLOW_REWARD)
    return path


async def test_the_ten_line_example_scores_conforms_and_drains() -> None:
    with process(EXAMPLES / "ten_lines.py", "0") as (server, address):
        async with client_of(address) as client:
            outcomes = await client.score([make_sample(0, completion=" 7\n"), make_sample(1, completion="8")])
        check = await asyncio.to_thread(command.main, ["check", address, "--stop", f"kill {server.pid}"])
        assert server.wait(10.0) == 0

    assert outcomes == [Reward(value=1.0), Reward(value=0.0)]
    assert check == 0


async def test_the_example_made_from_the_proto_alone_scores_and_conforms() -> None:
    with process(EXAMPLES / "from_proto.py", "0") as (server, address):
        async with client_of(address) as client:
            scored, refused = await client.score(
                [
                    make_sample(0, completion="red and blue", keywords=["red", "green"]),
                    make_sample(1, completion="red", other="field"),
                ]
            )
        check = await asyncio.to_thread(
            command.main,
            ["check", address, "--reference", '{"keywords": ["answer"]}', "--stop", f"kill {server.pid}"],
        )

    assert scored == Reward(value=0.5)
    assert isinstance(refused, Failure) and refused.code is FailureCode.INVALID_SAMPLE
    assert check == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_calls_under_way_finish_and_exits_with_zero(
    slow_reward: Path, number: signal.Signals
) -> None:
    with process("-m", "reward_server", f"{slow_reward}:score", "--port", "0") as (server, address):
        async with client_of(address) as client:
            scoring = asyncio.create_task(client.score([make_sample()]))
            await until((slow_reward.parent / "called").exists)
            server.send_signal(number)
            (slow_reward.parent / "go").touch()
            assert await scoring == [Reward(value=1.0, components={"slow_score": 1.0})]
        assert await asyncio.to_thread(server.wait, 10) == 0


async def test_a_run_starts_its_services_and_stops_them(tmp_path: Path) -> None:
    services = [
        RewardServiceConfig(name="math_answer", weight=2.0),
        RewardServiceConfig(name="length_penalty", weight=0.5, options={"max_length": 4, "cache_length": 2}),
    ]
    child = RewardServerChild(services, RewardServerConfig(port=0, num_processes=1), log=tmp_path / "reward.log")
    async with client_of(child.address) as client:
        assert (await client.describe()).needs_token_ids
        sample = replace(make_sample(completion="#### 7"), token_ids=(1, 2, 3))
        (outcome,) = await client.score([sample])
    grandchildren = psutil.Process(child.pid).children()

    assert outcome == Reward(value=1.75, components={"math_answer": 1.0, "length_penalty": -0.5})
    assert len(grandchildren) == 1
    assert child.is_alive
    assert child.stop() == 0
    assert not child.is_alive
    await until(lambda: not any(process.is_running() for process in grandchildren))


async def test_a_process_that_ended_while_it_had_nothing_to_score_is_replaced(tmp_path: Path) -> None:
    services = [RewardServiceConfig(name="math_answer")]
    child = RewardServerChild(services, RewardServerConfig(port=0, num_processes=1), log=tmp_path / "reward.log")
    (idle,) = psutil.Process(child.pid).children()
    idle.kill()
    await until(lambda: not is_running(idle))
    async with client_of(child.address) as client:
        (outcome,) = await client.score([make_sample(completion="#### 7")])
    assert isinstance(outcome, Reward) and outcome.value == 1.0
    assert child.stop() == 0


async def test_the_services_of_a_run_outlive_a_sigterm_to_every_process_of_it(tmp_path: Path) -> None:
    """`ray job stop` sends one, and the run has a step to finish."""
    services = [RewardServiceConfig(name="math_answer")]
    child = RewardServerChild(services, RewardServerConfig(port=0, num_processes=1), log=tmp_path / "reward.log")
    server = psutil.Process(child.pid)
    grandchildren = server.children(recursive=True)
    assert len(grandchildren) == 1
    for member in (server, *grandchildren):
        member.terminate()
    async with client_of(child.address) as client:
        (outcome,) = await client.score([make_sample(completion="#### 7")])
    assert isinstance(outcome, Reward) and outcome.value == 1.0
    assert all(is_running(member) for member in grandchildren)
    assert child.stop() == 0


def test_a_run_is_told_why_its_services_do_not_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"exit code 2(.|\n)*there is no reward 'math_anwser'"):
        RewardServerChild(
            [RewardServiceConfig(name="math_anwser")], RewardServerConfig(port=0), log=tmp_path / "reward.log"
        )


async def test_a_server_and_its_processes_die_with_the_run_that_started_them(tmp_path: Path) -> None:
    run = (
        "import signal, sys; from pathlib import Path\n"
        "from reward_server.child import RewardServerChild\n"
        "from reward_server.config import RewardServerConfig, RewardServiceConfig\n"
        "child = RewardServerChild([RewardServiceConfig(name='math_answer')], RewardServerConfig(port=0),"
        " log=Path(sys.argv[1]))\n"
        f"print('{READY_PREFIX}' + str(child.pid), flush=True)\n"
        "signal.pause()\n"
    )
    with process("-c", run, tmp_path / "reward.log") as (parent, pid):
        server = psutil.Process(int(pid))
        family = [server, *server.children(recursive=True)]
        assert len(family) > 1
        parent.kill()
        parent.wait()
        await until(lambda: not any(is_running(member) for member in family))


async def test_a_stuck_process_dies_with_its_server(tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(STUCK_REWARD)
    path = tmp_path / "rewards.yaml"
    path.write_text(f"services: [{{name: '{tmp_path}/stuck.py:score', isolate: true}}]\nserver: {{num_processes: 1}}\n")
    with process("-m", "reward_server", path, "--port", "0") as (server, address):
        async with client_of(address) as client:
            scoring = asyncio.create_task(client.score([make_sample()]))
            await until((tmp_path / "called").exists)
            (stuck,) = psutil.Process(server.pid).children()
            server.kill()
            server.wait()
            await until(lambda: not is_running(stuck))
            scoring.cancel()


def is_running(member: psutil.Process) -> bool:
    try:
        return member.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_yaml_file_names_services_and_server(tmp_path: Path) -> None:
    path = tmp_path / "rewards.yaml"
    path.write_text(
        "services: [{name: exact_match, options: {ignore_case: true}}]\nserver: {max_samples_per_call: 5}\n"
    )
    with process("-m", "services.cli", "reward", "serve", path, "--port", "0") as (_, address):
        async with client_of(address) as client:
            assert (await client.describe()).max_batch_samples == 5
            (outcome,) = await client.score([make_sample(completion="YES", answer="yes")])

    assert outcome == Reward(value=1.0, components={"exact_match": 1.0})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "there is no reward 'nonsense'"),
        (["missing.yaml"], "missing.yaml cannot be read: No such file"),
        (["exact_match", "--port", "x"], "server.port: Input should be a valid integer"),
        (["exact_match", "--host", "0.0.0.0"], "allow_plaintext"),
        (["exact_match", "--parent-pid", "1"], "not 1; it may have ended already"),
    ],
)
def test_a_wrong_command_line_exits_with_two_and_one_message(arguments: list[str], words: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "reward_server", *arguments],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("flags", "drain", "verdict"),
    [
        ([], "drain not checked give --stop COMMAND", "of what was checked the service keeps the contract; 19 checks"),
        (["--skip", "drain"], "drain not checked left out, as asked", "of what was checked the service keeps the"),
    ],
)
async def test_a_check_that_was_not_made_is_told_and_not_vouched_for(
    flags: list[str], drain: str, verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ("reachable", "describe", "health", "drain")
    skipped = [flag for name in CHECKS if name not in made for flag in ("--skip", name)]
    with process(EXAMPLES / "ten_lines.py", "0") as (_, address):
        assert await asyncio.to_thread(command.main, ["check", address, *skipped, *flags]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert drain in words and "overload not checked left out" in words
    assert verdict in words


def test_check_fails_where_nothing_listens(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["check", "127.0.0.1:1", "--timeout-s", "0.2"]) == 1
    assert "nothing that speaks gRPC answers" in " ".join(capsys.readouterr().out.split())


async def test_a_server_that_is_killed_under_calls_is_said_to_drop_them(capsys: pytest.CaptureFixture[str]) -> None:
    with process(EXAMPLES / "ten_lines.py", "0") as (server, address):
        kill = ["check", address, "--stop", f"kill -9 {server.pid}", "--skip", "overload", "--skip", "full call"]
        assert await asyncio.to_thread(command.main, kill) == 1
    words = " ".join(capsys.readouterr().out.split())
    assert "were dropped (UNAVAILABLE" in words
    assert "1 of 20 checks failed" in words


def test_a_command_that_does_not_exist_cannot_stop_a_service() -> None:
    with pytest.raises(UserError, match="'nonsense' is not a command"):
        command.main(["check", "127.0.0.1:1", "--stop", "nonsense"])


def test_check_needs_a_reference_that_is_an_object() -> None:
    with pytest.raises(UserError, match="must be a JSON object"):
        command.main(["check", "127.0.0.1:1", "--reference", json.dumps([1])])


def test_an_unknown_action_names_those_there_are() -> None:
    with pytest.raises(UserError, match="it has serve, check"):
        command.main(["swerve"])
