"""The control service over real gRPC: a server on a run that remembers, and the client that operators use."""

import asyncio
import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from pydantic import ValidationError

from services.contracts.errors import CheckpointError, ControlError, DeadlineExceeded, TriremeError, UserError
from services.control.control_server import open_control_server
from services.control.control_settings import ControlConfig
from services.protos.control.v1 import control_pb2, control_pb2_grpc
from services.transport.control_client import ControlClient, RunAddress, connect, find_run
from services.transport.control_file import CONTROL_FILE
from services.transport.grpc_security import TOKEN_KEY, bearer
from services.transport.secret_files import server_material
from tests.certificates import Authority
from tests.control.fake_run import live_process
from tests.fakes import FakeRunControl

Answer = TypeVar("Answer")

CALLS: dict[str, Callable[[ControlClient], object]] = {
    "status": lambda client: client.status(),
    "scale 4": lambda client: client.scale(4),
    "pause": lambda client: client.pause(),
    "resume": lambda client: client.resume(),
    "checkpoint 5": lambda client: client.checkpoint(),
    "drain": lambda client: client.drain(),
}
CHANGES = {name: call for name, call in CALLS.items() if name != "status"}


async def ask(run: RunAddress, call: Callable[[ControlClient], Answer], *, timeout_s: float = 5.0) -> Answer:
    """The answer to one call, made outside this thread, in which the server runs."""

    def in_thread() -> Answer:
        with connect(run, timeout_s=timeout_s) as client:
            return call(client)

    return await asyncio.to_thread(in_thread)


async def refused(run: RunAddress, call: Callable[[ControlClient], object], *, timeout_s: float = 5.0) -> TriremeError:
    """The error with which a call ends."""
    with pytest.raises(TriremeError) as caught:
        await ask(run, call, timeout_s=timeout_s)
    return caught.value


async def test_an_operator_sees_the_run_and_changes_it(tmp_path: Path) -> None:
    control = FakeRunControl()
    async with open_control_server(control, ControlConfig(), tmp_path):
        run = find_run(str(tmp_path))
        assert await ask(run, CALLS["status"]) == control.state
        assert await ask(run, CALLS["checkpoint 5"]) == "checkpoints/step_3"
        for name in ("scale 4", "pause", "resume", "drain"):
            await ask(run, CALLS[name])
        after = await ask(run, lambda client: client.status())

    assert control.asked == ["checkpoint 5", "scale 4", "pause", "resume", "drain"]
    assert (after.target_workers, after.phase) == (4, "draining")


async def test_a_status_without_checkpoint_and_with_broken_text_arrives(tmp_path: Path) -> None:
    control = FakeRunControl()
    control.state = replace(control.state, last_checkpoint=None, message="half \ud83d", workers=())
    async with open_control_server(control, ControlConfig(), tmp_path):
        status = await ask(find_run(str(tmp_path)), CALLS["status"])

    assert status == replace(control.state, message="half ?")


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (UserError("9 workers are too many: give 1 to 4"), UserError),
        (CheckpointError("the disk is full"), ControlError),
        (DeadlineExceeded(waited_for="the step", waited_s=2, advice="wait longer"), ControlError),
        (RuntimeError("a bug"), ControlError),
    ],
)
async def test_an_error_of_the_run_reaches_the_operator(
    tmp_path: Path, name: str, error: Exception, seen: type[TriremeError]
) -> None:
    async with open_control_server(FakeRunControl(error=error), ControlConfig(), tmp_path):
        told = await refused(find_run(str(tmp_path)), CHANGES[name])

    assert type(told) is seen
    assert str(error) in str(told)


async def test_a_long_error_is_cut_and_not_lost(tmp_path: Path) -> None:
    async with open_control_server(FakeRunControl(error=CheckpointError("🚣" * 5000)), ControlConfig(), tmp_path):
        told = await refused(find_run(str(tmp_path)), CALLS["pause"])

    assert set(str(told)) == {"🚣"}


@pytest.mark.parametrize("token", ["", "wrong", "Bearer"])
@pytest.mark.parametrize("name", CALLS)
async def test_nothing_is_done_without_the_token(tmp_path: Path, name: str, token: str) -> None:
    control = FakeRunControl()
    async with open_control_server(control, ControlConfig(), tmp_path):
        right = find_run(str(tmp_path))
        told = await refused(replace(right, token=token, token_from="token.txt"), CALLS[name])

    assert isinstance(told, UserError)
    assert "does not know the token in token.txt" in str(told)
    assert right.token not in str(told)
    assert control.asked == []


async def test_a_call_without_any_metadata_is_refused(tmp_path: Path) -> None:
    control = FakeRunControl()
    async with (
        open_control_server(control, ControlConfig(), tmp_path) as entry,
        grpc.aio.insecure_channel(entry.address) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await control_pb2_grpc.ControlServiceStub(channel).Drain(control_pb2.DrainRequest(), timeout=5)

    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert control.asked == []


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, math.nan, math.inf])
async def test_a_checkpoint_without_an_end_is_refused(tmp_path: Path, timeout_s: float) -> None:
    control = FakeRunControl()
    async with (
        open_control_server(control, ControlConfig(), tmp_path) as entry,
        grpc.aio.insecure_channel(entry.address) as channel,
    ):
        stub = control_pb2_grpc.ControlServiceStub(channel)
        request = control_pb2.CheckpointRequest(timeout_s=timeout_s)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Checkpoint(request, timeout=5, metadata=[(TOKEN_KEY, bearer(entry.token))])

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert control.asked == []


async def test_a_run_that_does_not_take_a_request_up_is_reported(tmp_path: Path) -> None:
    async with open_control_server(FakeRunControl(open=False), ControlConfig(timeout_s=0.05), tmp_path):
        told = await refused(find_run(str(tmp_path)), CALLS["pause"])

    assert isinstance(told, ControlError)
    assert "within 0.05 s (control.timeout_s)" in str(told)


async def test_a_frozen_run_costs_the_operator_the_deadline_and_no_more(tmp_path: Path) -> None:
    with live_process(tmp_path) as process:
        run = find_run(str(tmp_path))
        process.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        told = await refused(run, CALLS["status"], timeout_s=0.5)

    assert isinstance(told, DeadlineExceeded)
    assert f"the run at {run.address} to answer Status" in str(told)
    assert 0.5 <= time.monotonic() - started < 5.0


async def test_only_the_owner_can_read_the_token_and_it_goes_with_the_run(tmp_path: Path) -> None:
    async with open_control_server(FakeRunControl(), ControlConfig(), tmp_path) as entry:
        (file,) = tmp_path.iterdir()
        assert file.name == CONTROL_FILE
        assert file.stat().st_mode & 0o777 == 0o600
        assert len(json.loads(file.read_text())["token"]) >= 43
        assert entry.token not in repr(entry) + repr(find_run(str(tmp_path)))

    assert list(tmp_path.iterdir()) == []


async def test_a_run_that_ends_by_an_error_leaves_no_token_behind(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        async with open_control_server(FakeRunControl(), ControlConfig(), tmp_path):
            raise CheckpointError("the disk is full")

    assert list(tmp_path.iterdir()) == []


async def test_two_runs_are_told_apart(tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    first, second = FakeRunControl("first"), FakeRunControl("second")
    for folder in folders:
        folder.mkdir()
    async with (
        open_control_server(first, ControlConfig(), folders[0]) as one,
        open_control_server(second, ControlConfig(), folders[1]) as other,
    ):
        names = [(await ask(find_run(str(folder)), lambda client: client.status())).name for folder in folders]
        await ask(find_run(other.address, token=other.token), CALLS["pause"])
        await refused(find_run(other.address, token=one.token), CALLS["drain"])

    assert names == ["first", "second"]
    assert (first.asked, second.asked) == ([], ["pause"])


async def test_a_run_that_was_killed_is_not_asked(tmp_path: Path) -> None:
    committed = tmp_path / "checkpoints" / "step_1" / "COMMIT"
    committed.parent.mkdir(parents=True)
    committed.touch()
    with live_process(tmp_path) as process:
        process.kill()
        process.wait(timeout=10)

    assert (tmp_path / CONTROL_FILE).exists()
    with pytest.raises(UserError) as caught:
        find_run(str(tmp_path))
    assert f"is not live: its process {process.pid} is gone" in str(caught.value)
    assert f"trireme train {tmp_path / 'config.yaml'} --resume" in str(caught.value)
    committed.unlink()
    with pytest.raises(UserError, match="it had saved no checkpoint, so there is nothing to go on from"):
        find_run(str(tmp_path))
    async with open_control_server(FakeRunControl(), ControlConfig(), tmp_path):
        assert (await ask(find_run(str(tmp_path)), lambda client: client.status())).name == "fake"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no run"),
        ({"config.yaml": ""}, "cannot be asked: it has no control.json"),
        ({CONTROL_FILE: "{"}, "is damaged"),
        ({CONTROL_FILE: '["address"]'}, "is damaged"),
        ({CONTROL_FILE: '{"address": "127.0.0.1:1", "token": "t", "pid": 0}'}, "is damaged"),
        ({CONTROL_FILE: '{"address": "127.0.0.1:1", "token": "t", "host": "far"}'}, "is on machine far"),
    ],
)
def test_a_folder_without_a_live_run_is_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        find_run(str(tmp_path))


@pytest.mark.parametrize(
    ("run", "token", "message"),
    [
        ("runs/nowhere", None, "there is no folder 'runs/nowhere'"),
        ("nowhere", None, "there is no folder 'nowhere'"),
        ("trainer:port", "t", "'trainer:port' is not HOST:PORT"),
        ("127.0.0.1:7000", None, "asks for a token: .* into TRIREME_CONTROL_TOKEN"),
        ("127.0.0.1:7000", "two\nlines", "is no token"),
    ],
)
def test_what_is_no_run_is_refused(run: str, token: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_run(run, token=token)


def test_a_token_leaves_this_machine_only_behind_tls() -> None:
    assert find_run("127.0.0.1:7000", token="t").plaintext
    assert not find_run("trainer.example:7000", token="t").plaintext
    assert not find_run("10.0.0.1:7000", token="t").plaintext


async def test_another_service_at_the_address_is_named(tmp_path: Path) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    told = await refused(find_run(f"127.0.0.1:{port}", token="t"), CALLS["status"])
    await server.stop(None)
    gone = await refused(find_run(f"127.0.0.1:{port}", token="t"), CALLS["status"])

    assert isinstance(told, UserError)
    assert "is no trireme.control.v1.ControlService" in str(told)
    assert isinstance(gone, ControlError)
    assert f"no run can be reached at 127.0.0.1:{port}" in str(gone)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"address": "0.0.0.0:7000"}, "reaches beyond this machine, and nothing would be encrypted"),
        ({"address": "trainer.example:7000"}, "give control.tls_certificate and control.tls_key"),
        ({"address": "127.0.0.1"}, "control.address '127.0.0.1' is not HOST:PORT"),
        ({"tls_certificate": "run.crt"}, "without tls_key"),
        ({"tls_key": "run.key", "address": "0.0.0.0:7000"}, "without tls_certificate"),
    ],
)
def test_settings_that_would_expose_the_token_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ControlConfig.model_validate(settings)


async def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    async with open_control_server(FakeRunControl(), ControlConfig(), tmp_path) as entry:
        with pytest.raises(UserError, match=f"cannot listen on control.address {entry.address}"):
            async with open_control_server(FakeRunControl(), ControlConfig(address=entry.address), tmp_path):
                pass
        assert (tmp_path / CONTROL_FILE).exists()


def make_config(folder: Path, authority: Authority) -> ControlConfig:
    certificate, key = authority.sign(folder, names=["127.0.0.1"])
    return ControlConfig(tls_certificate=certificate, tls_key=key)


async def test_another_machine_is_answered_behind_tls_alone(tmp_path: Path) -> None:
    authority, foreign = Authority(tmp_path / "ca"), Authority(tmp_path / "foreign")
    config = make_config(tmp_path / "run", authority)
    control = FakeRunControl()
    async with open_control_server(control, config, tmp_path) as entry:
        run = find_run(entry.public_address, token=entry.token, ca_file=authority.file)
        status = await ask(run, CALLS["status"])
        wrong_token = await refused(replace(run, token="wrong"), CALLS["drain"])
        stranger = find_run(entry.public_address, token=entry.token, ca_file=foreign.file)
        wrong_authority = await refused(stranger, CALLS["drain"])
        plaintext = await refused(find_run(entry.public_address, token=entry.token), CALLS["drain"])
        assert await ask(find_run(str(tmp_path)), CALLS["status"]) == status == control.state
        foreign.sign(tmp_path / "run", names=["127.0.0.1"])
        assert await ask(stranger, CALLS["status"]) == control.state, "the new certificate is not shown"

    assert "does not know the token" in str(wrong_token)
    assert "its certificate is not one that --ca-file vouches for" in str(wrong_authority)
    assert "it speaks TLS and needs --ca-file" in str(plaintext)
    assert control.asked == []


def test_a_certificate_that_cannot_be_used_is_refused_before_the_run(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    config, foreign = make_config(tmp_path / "run", authority), make_config(tmp_path / "foreign", authority)
    assert server_material(config) is not None
    assert server_material(ControlConfig()) is None
    for wrong in ({"tls_key": foreign.tls_key}, {"tls_certificate": tmp_path / "nowhere"}):
        with pytest.raises(UserError, match=r"control.tls_certificate .* cannot be used"):
            server_material(config.model_copy(update=wrong), section="control.")
