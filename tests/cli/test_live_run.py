"""The commands on a live run, as an operator types them: what they print, and how they end."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest

from services.cli.__main__ import COMMANDS
from services.contracts.errors import CheckpointError, UserError
from services.control.control_server import open_control_server
from services.control.control_settings import ControlConfig
from tests.control.fake_run import live_process
from tests.fakes import FakeRunControl
from tests.readme_tree import ROOT

LIVE = ("status", "scale", "pause", "resume", "checkpoint", "drain")
TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a command ended, and what it wrote."""

    code: int | None
    output: str
    error: str


async def start(*arguments: str, **variables: str) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", *arguments),
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **variables},
        stdout=PIPE,
        stderr=PIPE,
    )


async def end(process: Process) -> Ended:
    output, error = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    assert b"Traceback" not in error
    return Ended(code=process.returncode, output=output.decode(), error=error.decode())


async def trireme(*arguments: str, **variables: str) -> Ended:
    return await end(await start(*arguments, **variables))


async def test_the_status_of_a_run_and_its_workers_is_shown(tmp_path: Path) -> None:
    async with open_control_server(FakeRunControl("gsm8k"), ControlConfig(), tmp_path):
        ended = await trireme("status", str(tmp_path))

    assert ended.code == 0
    words = [line.split() for line in ended.output.splitlines()]
    assert ["run", "gsm8k,", "running"] in words
    assert ["step", "3", "of", "10"] in words
    assert ["workers", "1", "serving,", "2", "there,", "2", "wanted"] in words
    assert ["0", "serving,", "slow", "3", "4", "node-a", "17"] in words
    assert ["2", "loading", "0"] in words


async def test_no_text_of_a_run_can_harm_the_terminal(tmp_path: Path) -> None:
    control = FakeRunControl(error=UserError("no \x1b[2J room"))
    worker = replace(control.state.workers[0], node="[red]\x1b[5mnode")
    control.state = replace(control.state, name="[bold]n", message="\x1b[2Jgone \a", workers=(worker,))
    async with open_control_server(control, ControlConfig(), tmp_path):
        status = await trireme("status", str(tmp_path))
        scale = await trireme("scale", str(tmp_path), "rollout_workers", "2")

    assert "[bold]n" in status.output
    assert "[red]" in status.output
    assert "room" in scale.error
    assert not {"\x1b", "\a"} & set(status.output + scale.error)


async def test_the_status_for_programs_is_one_object(tmp_path: Path) -> None:
    control = FakeRunControl()
    async with open_control_server(control, ControlConfig(), tmp_path):
        ended = await trireme("status", str(tmp_path), "--json")

    assert json.loads(ended.output) == json.loads(json.dumps(asdict(control.state)))


@pytest.mark.parametrize(
    ("arguments", "asked", "output"),
    [
        (["scale", "RUN", "rollout_workers", "4"], "scale 4", "4 rollout workers from now on"),
        (["pause", "RUN"], "pause", "paused; `trireme resume"),
        (["resume", "RUN"], "resume", "resumed"),
        (["checkpoint", "RUN", "--timeout-s", "7"], "checkpoint 7", "checkpoints/step_3"),
        (["drain", "RUN"], "drain", "draining"),
    ],
)
async def test_a_run_is_told_what_the_operator_typed(
    tmp_path: Path, arguments: list[str], asked: str, output: str
) -> None:
    control = FakeRunControl()
    async with open_control_server(control, ControlConfig(), tmp_path):
        ended = await trireme(*(str(tmp_path) if word == "RUN" else word for word in arguments))

    assert (ended.code, ended.error, control.asked) == (0, "", [asked])
    assert output in ended.output


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("9 are too many: give 1 to 4"), 2), (CheckpointError("the disk is full"), 1)]
)
async def test_what_the_run_says_decides_the_exit_code(tmp_path: Path, error: Exception, code: int) -> None:
    async with open_control_server(FakeRunControl(error=error), ControlConfig(), tmp_path):
        ended = await trireme("scale", str(tmp_path), "rollout_workers", "9")

    assert (ended.code, ended.output) == (code, "")
    assert ended.error == f"error: {error}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "runs/nowhere"], "error: there is no folder 'runs/nowhere'"),
        (["status", "127.0.0.1:1"], "error: 127.0.0.1:1 asks for a token"),
        (["status", "127.0.0.1:1", "--token-file", "nowhere"], "error: --token-file nowhere cannot be read"),
        (["status", "127.0.0.1:1", "--ca-file", "README.md"], "error: --ca-file README.md cannot be used"),
        (["scale", ".", "learner", "4"], "error: a live run cannot scale 'learner', only rollout_workers"),
        (["scale", ".", "rollout_workers", "many"], "invalid int value: 'many'"),
        (["pause", ".", "--timeout-s", "nan"], "nan is no time to wait"),
        (["drain"], "the following arguments are required: RUN"),
    ],
)
async def test_a_wrong_word_is_named(arguments: list[str], message: str) -> None:
    token = "t" if "--ca-file" in arguments else ""
    ended = await trireme(*arguments, TRIREME_CONTROL_TOKEN=token)

    assert (ended.code, ended.output) == (2, "")
    assert message in ended.error


async def test_an_address_needs_the_token_of_its_run(tmp_path: Path) -> None:
    file = tmp_path / "token"
    async with open_control_server(FakeRunControl(), ControlConfig(), tmp_path) as entry:
        file.write_text(f"{entry.token}\n")
        by_file = await trireme("status", entry.address, "--token-file", str(file))
        by_variable = await trireme("status", entry.address, TRIREME_CONTROL_TOKEN=entry.token)
        wrong = await trireme("status", entry.address, TRIREME_CONTROL_TOKEN="sesame")

    assert (by_file.code, by_variable.code, wrong.code) == (0, 0, 2)
    assert "does not know the token in TRIREME_CONTROL_TOKEN" in wrong.error
    assert "sesame" not in wrong.error


async def test_a_run_that_is_frozen_or_killed_is_told_from_one_that_answers(tmp_path: Path) -> None:
    with live_process(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        frozen = await trireme("pause", str(tmp_path), "--timeout-s", "1")
        process.kill()
        killed = await trireme("pause", str(tmp_path))

    assert frozen.code == 1
    assert "error: waited 1 s for the run at 127.0.0.1:" in frozen.error
    assert killed.code == 2
    assert f"its process {process.pid} is gone" in killed.error
    assert "it had saved no checkpoint" in killed.error


async def test_a_watch_ends_with_its_run(tmp_path: Path) -> None:
    async with open_control_server(FakeRunControl(), ControlConfig(), tmp_path):
        process = await start("status", str(tmp_path), "--watch", "--json", "--every-s", "0.05")
        assert process.stdout is not None
        shown = [json.loads(await asyncio.wait_for(process.stdout.readline(), TIMEOUT_S)) for _ in range(3)]
    ended = await end(process)

    assert [status["name"] for status in shown] == ["fake"] * 3
    assert (ended.code, ended.error) == (0, "")


async def test_a_watch_tells_when_its_run_was_killed(tmp_path: Path) -> None:
    with live_process(tmp_path) as run:
        process = await start("status", str(tmp_path), "--watch", "--every-s", "0.05")
        assert process.stdout is not None
        await asyncio.wait_for(process.stdout.readline(), TIMEOUT_S)
        run.kill()
        ended = await end(process)

    assert ended.code == 1
    assert "error: no run can be reached" in ended.error


@pytest.mark.parametrize("command", LIVE)
async def test_the_help_of_a_command_has_an_example(command: str) -> None:
    ended = await trireme(command, "--help")

    assert command in COMMANDS
    assert ended.code == 0
    assert f"example: trireme {command} runs/gsm8k" in ended.output


def test_no_command_on_a_live_run_loads_what_takes_seconds() -> None:
    modules = ", ".join(f"services.cli.{command}" for command in LIVE)
    slow = "{'torch', 'ray', 'vllm', 'deepspeed', 'transformers', 'numpy', 'pydantic'}"
    command = [sys.executable, "-c", f"import sys, {modules}; print({slow} & set(sys.modules))"]
    assert subprocess.check_output(command, cwd=ROOT, text=True, timeout=TIMEOUT_S) == "set()\n"
