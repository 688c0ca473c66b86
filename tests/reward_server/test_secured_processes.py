"""A reward server with TLS and a token as a process, started by a run or by hand, and reached by run and command."""

from pathlib import Path

import pytest

from reward_server import serve
from reward_server.child import RewardServerChild
from reward_server.config import OwnServerConfig, RewardConfig, RewardServiceConfig
from services.cli import reward as command
from services.contracts.errors import UserError
from services.contracts.records import Reward
from services.control.reward_service import LOG_FILE, open_reward_service
from services.transport.reward_client import RewardClient
from tests.certificates import Authority
from tests.reward_server.serving import IMPATIENT, make_sample
from tests.reward_server.test_processes import EXAMPLES, process

TOKEN = "canary-5eeb1c"


async def test_a_run_secures_its_own_server_and_writes_no_token_anywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.sign(tmp_path / "server", names=["127.0.0.1"])
    token_file = tmp_path / "secret"
    token_file.write_text(TOKEN)
    config = RewardConfig(
        services=(RewardServiceConfig(name="exact_match"),),
        server=OwnServerConfig(tls_certificate=certificate, tls_key=key, token_file=token_file),
        tls_ca=authority.file,
        token_file=token_file,
    )
    run = tmp_path / "run"
    async with open_reward_service(config, log_folder=run) as client:
        (outcome,) = await client.score([make_sample()])
    assert outcome == Reward(value=1.0, components={"exact_match": 1.0})
    assert TOKEN not in (run / LOG_FILE).read_text() + config.model_dump_json() + repr(config) + repr(client)
    assert TOKEN not in "".join(capsys.readouterr())


def test_the_check_command_takes_certificates_and_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.sign(tmp_path / "server", names=["127.0.0.1"])
    (tmp_path / "token").write_text(TOKEN)
    settings = OwnServerConfig(tls_certificate=certificate, tls_key=key, token_file=tmp_path / "token")
    child = RewardServerChild([RewardServiceConfig(name="exact_match")], settings, log=tmp_path / "log")
    slow = ["overload", "long completion", "request too large", "full call"]
    others = [flag for name in slow for flag in ("--skip", name)]
    try:
        ca = ["--tls-ca", str(authority.file)]
        checked = command.main(["check", child.address, *ca, "--token-file", str(tmp_path / "token"), *others])
        passed = capsys.readouterr().out
        refused = command.main(["check", child.address, *ca])
        words = " ".join(capsys.readouterr().out.split())
    finally:
        child.stop()
    assert checked == 0, passed
    assert refused == 1
    assert "UNAUTHENTICATED" in words
    assert TOKEN not in passed + words


async def test_the_example_serves_whoever_shows_certificate_and_token(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.sign(tmp_path / "server", names=["127.0.0.1"])
    own_certificate, own_key = authority.sign(tmp_path / "run")
    (tmp_path / "token").write_text(TOKEN)
    flags = {"host": "127.0.0.1", "port": 0, "tls-certificate": certificate, "tls-key": key}
    flags |= {"tls-client-ca": authority.file, "token-file": tmp_path / "token"}
    arguments = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    config = IMPATIENT.model_copy(
        update={"tls_ca": authority.file, "tls_certificate": own_certificate, "tls_key": own_key}
    )
    with process("-m", "reward_server", EXAMPLES / "secured.yaml", *arguments) as (_, address):
        client = RewardClient([address], config.model_copy(update={"token_file": tmp_path / "token"}))
        (outcome,) = await client.score([make_sample(completion="\\boxed{7}")])
        await client.close()
    assert outcome == Reward(value=1.0, components={"math_answer": 1.0})


def test_a_secret_in_the_wrong_place_is_not_repeated() -> None:
    with pytest.raises(UserError, match="token: Extra inputs are not permitted") as told:
        serve(lambda sample: 1.0, token=TOKEN)
    assert TOKEN not in str(told.value)
    assert told.value.__cause__ is None
