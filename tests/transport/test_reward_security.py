"""TLS, client certificates and tokens between a run and its reward servers: who is let in, what is told, and reload."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from reward_server.config import RewardConfig, RewardServerConfig
from reward_server.function import RewardFunction
from reward_server.part_config import RemoteConfig
from services.contracts.errors import RewardUnavailable, UserError
from services.contracts.records import Reward
from services.control.adaptation import LabelsConfig
from services.control.config import GoldConfig
from services.transport.grpc_security import bearer, is_accepted
from services.transport.reward_client import RewardClient
from services.transport.reward_conformance import CHECKS, check_service
from services.transport.reward_settings import RewardClientConfig
from services.transport.secret_files import server_material, tokens
from services.transport.security import ClientSecurity, ServerSecurity
from tests.certificates import Authority
from tests.reward_server.serving import IMPATIENT, Connect, completion_as_number, make_sample, serving

NUMBER = RewardFunction(completion_as_number)
SEVEN = [Reward(value=7.0)]
TOKEN, OTHER_TOKEN = "canary-5eeb1c", "canary-0ther"
EXPIRED = -timedelta(hours=1)


@dataclass(frozen=True)
class Pki:
    """An authority with a server's and a client's certificate, and another authority that nobody knows."""

    folder: Path
    authority: Authority
    stranger: Authority
    certificate: Path
    key: Path
    client_certificate: Path
    client_key: Path

    def server(self, **changes: object) -> RewardServerConfig:
        values = {"port": 0, "drain_s": 0.0, "tls_certificate": self.certificate, "tls_key": self.key} | changes
        return RewardServerConfig(**values)  # type: ignore[arg-type]  # fields of several types

    def token_file(self, *lines: str, name: str = "token") -> Path:
        path = self.folder / name
        path.write_text("\n".join(lines))
        return path


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    authority = Authority(tmp_path / "ca")
    server = authority.sign(tmp_path / "server", names=["127.0.0.1", "rewards.internal"])
    client = authority.sign(tmp_path / "client")
    return Pki(tmp_path, authority, Authority(tmp_path / "stranger"), *server, *client)


def client_config(**changes: object) -> RewardClientConfig:
    return IMPATIENT.model_copy(update={"refresh_s": 0.05, "timeout_s": 2.0, "backoff_max_s": 0.1} | changes)


async def test_tls_with_the_right_authority_is_answered(connect: Connect, pki: Pki) -> None:
    async with serving(NUMBER, pki.server()) as address:
        client = connect([address], client_config(tls_ca=pki.authority.file))
        assert await client.score([make_sample()]) == SEVEN


async def test_a_certificate_is_checked_against_the_name_and_not_the_machine_behind_it(
    connect: Connect, pki: Pki
) -> None:
    async def look_up(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async with serving(NUMBER, pki.server()) as address:
        port = address.rpartition(":")[2]
        config = client_config(tls_ca=pki.authority.file)
        assert await connect([f"rewards.internal:{port}"], config, look_up=look_up).score([make_sample()]) == SEVEN
        with pytest.raises(UserError, match=r"does not name elsewhere.internal; .* reward.tls_server_name"):
            await connect([f"elsewhere.internal:{port}"], config, look_up=look_up).describe()
        named = client_config(tls_ca=pki.authority.file, tls_server_name="rewards.internal")
        assert await connect([f"elsewhere.internal:{port}"], named, look_up=look_up).score([make_sample()]) == SEVEN


async def test_a_client_certificate_is_asked_for_and_checked(connect: Connect, pki: Pki) -> None:
    foreign_certificate, foreign_key = pki.stranger.sign(pki.folder / "foreign")
    own = {"tls_certificate": pki.client_certificate, "tls_key": pki.client_key}
    foreign = {"tls_certificate": foreign_certificate, "tls_key": foreign_key}
    async with serving(NUMBER, pki.server(tls_client_ca=pki.authority.file)) as address:

        async def ask(**changes: object) -> object:
            return await connect([address], client_config(tls_ca=pki.authority.file, **changes)).describe()

        await ask(**own)
        with pytest.raises(UserError, match=r"asks for a client certificate; set reward.tls_certificate"):
            await ask()
        with pytest.raises(UserError, match=r"does not accept the client certificate in reward.tls_certificate"):
            await ask(**foreign)


@asynccontextmanager
async def expired_server(pki: Pki) -> AsyncIterator[str]:
    certificate, key = pki.authority.sign(pki.folder / "old", names=["127.0.0.1"], expires=EXPIRED)
    async with serving(NUMBER, pki.server(tls_certificate=certificate, tls_key=key)) as address:
        yield address


async def test_what_is_wrong_with_tls_is_told_before_the_run(connect: Connect, pki: Pki) -> None:
    plain = RewardServerConfig(port=0, drain_s=0.0)
    async with (
        serving(NUMBER, pki.server()) as secure,
        serving(NUMBER, plain) as open_,
        expired_server(pki) as expired,
    ):
        ours, theirs = client_config(tls_ca=pki.authority.file), client_config(tls_ca=pki.stranger.file)
        cases = [
            (secure, theirs, r"none that reward.tls_ca vouches for"),
            (secure, client_config(tls=True), r"none that this machine trusts"),
            (secure, client_config(), r"speaks TLS; set reward.tls_ca"),
            (open_, ours, r"does not speak TLS; .* leave out reward.tls"),
            (expired, ours, r"has expired; renew it"),
        ]
        for address, config, words in cases:
            with pytest.raises(UserError, match=f"^{address} .*{words}"):
                await connect([address], config).describe()


@pytest.mark.parametrize("section", [GoldConfig, LabelsConfig, RemoteConfig])
async def test_what_is_wrong_is_told_with_the_section_that_it_is_in(
    section: type[RewardConfig] | type[RemoteConfig], connect: Connect, pki: Pki
) -> None:
    name = section.section
    async with serving(NUMBER, pki.server()) as address:
        config = section(addresses=(address,), unavailable_budget_s=0.0)
        with pytest.raises(UserError, match=f"speaks TLS; set {name}tls_ca to .*, or {name}tls to true"):
            await connect([address], config).describe()
        config = section(addresses=(address,), tls_ca=pki.folder / "none")
        with pytest.raises(UserError, match=f"^{name}tls_ca .*none cannot be used"):
            connect([address], config)
    assert name in ("gold.", "labels.", "remote.")


async def test_without_a_right_token_nothing_is_answered_but_health(connect: Connect, pki: Pki) -> None:
    config = RewardServerConfig(port=0, drain_s=0.0, token_file=pki.token_file(OTHER_TOKEN, TOKEN))
    async with serving(NUMBER, config) as address:
        right = client_config(token_file=pki.token_file(TOKEN, name="mine"))
        wrong = client_config(token_file=pki.token_file("guess", name="guess"))
        assert await connect([address], right).score([make_sample()]) == SEVEN
        with pytest.raises(UserError, match=rf"^{address} does not know the token that reward.token_file leads to$"):
            await connect([address], wrong).describe()
        with pytest.raises(UserError, match=rf"^{address} asks for a token; set reward.token_file or"):
            await connect([address], client_config()).describe()
        async with grpc.aio.insecure_channel(address) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_certificates_are_replaced_while_server_and_client_live(connect: Connect, pki: Pki) -> None:
    """All of them, the server's and the client's, under an authority that neither knew before."""
    own = {"tls_certificate": pki.client_certificate, "tls_key": pki.client_key}
    config = pki.server(tls_client_ca=pki.authority.file)
    async with serving(NUMBER, config) as address:
        client = connect([address], client_config(tls_ca=pki.authority.file, unavailable_budget_s=20.0, **own))
        assert await client.score([make_sample()]) == SEVEN
        new = Authority(pki.folder / "new")
        new.sign(pki.folder / "server", names=["127.0.0.1"])
        new.sign(pki.folder / "client")
        pki.authority.file.write_bytes(new.file.read_bytes())
        newcomer = connect([address], client_config(tls_ca=new.file, **own))
        assert await newcomer.score([make_sample()]) == SEVEN
        assert await client.score([make_sample()]) == SEVEN
    port = int(address.rpartition(":")[2])
    async with serving(NUMBER, config.model_copy(update={"port": port})):  # Every connection has to be made anew.
        assert await asyncio.wait_for(client.score([make_sample()]), 10.0) == SEVEN


async def test_a_pair_that_is_half_replaced_changes_nothing(pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
    material = server_material(pki.server())
    assert material is not None
    before = material.get()
    certificate, key = pki.authority.sign(pki.folder / "next", names=["127.0.0.1"])
    pki.certificate.write_bytes(certificate.read_bytes())
    assert material.get() == before
    assert "going on with what was read before" in caplog.text
    pki.key.write_bytes(key.read_bytes())
    assert material.get().certificate == certificate.read_bytes()


async def test_tokens_are_replaced_while_server_and_client_live(connect: Connect, pki: Pki) -> None:
    accepted, mine = pki.token_file(TOKEN, name="accepted"), pki.token_file(TOKEN, name="mine")
    async with serving(NUMBER, RewardServerConfig(port=0, drain_s=0.0, token_file=accepted)) as address:
        client = connect([address], client_config(token_file=mine, unavailable_budget_s=20.0))
        assert await client.score([make_sample()]) == SEVEN
        pki.token_file(OTHER_TOKEN, name="accepted")
        waiting = asyncio.create_task(client.score([make_sample()]))
        await asyncio.sleep(0.1)
        assert not waiting.done(), "the old token is still accepted"
        pki.token_file(OTHER_TOKEN, name="mine")
        assert await asyncio.wait_for(waiting, 10.0) == SEVEN


async def test_a_token_that_is_refused_within_a_run_is_waited_out_and_named(connect: Connect, pki: Pki) -> None:
    accepted, mine = pki.token_file(TOKEN, name="accepted"), pki.token_file(TOKEN, name="mine")
    async with serving(NUMBER, RewardServerConfig(port=0, drain_s=0.0, token_file=accepted)) as address:
        client = connect([address], client_config(token_file=mine))
        await client.describe()
        pki.token_file(OTHER_TOKEN, name="accepted")
        with pytest.raises(RewardUnavailable, match="does not know the token that reward") as told:
            await client.score([make_sample()])
    assert TOKEN not in str(told.value)


def test_a_token_of_an_environment_variable_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_REWARD_TOKEN", f"{TOKEN}\n")
    for section in (ServerSecurity, ClientSecurity):
        found = tokens(section(token_variable="MY_REWARD_TOKEN"))
        assert found is not None and found.get() == (TOKEN,)


@pytest.mark.parametrize("given", [bearer(TOKEN), bearer(OTHER_TOKEN)])
def test_any_of_the_accepted_tokens_is_let_in(given: str) -> None:
    assert is_accepted(given, [TOKEN, OTHER_TOKEN])


@pytest.mark.parametrize("given", ["", TOKEN, bearer(""), bearer(TOKEN[:-1]), bearer(TOKEN + "x"), "bearer é"])
def test_nothing_else_is(given: str) -> None:
    assert not is_accepted(given, [TOKEN, OTHER_TOKEN])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: {"token_file": folder / "none"}, "reward.token_file cannot be read"),
        (lambda folder: {"token_file": folder / "empty"}, "reward.token_file leads to no token"),
        (lambda folder: {"token_file": folder / "spaced"}, "reward.token_file leads to no token"),
        (lambda folder: {"token_variable": "TRIREME_TEST_UNSET"}, "reward.token_variable leads to no token"),
        (lambda folder: {"tls_ca": folder / "none"}, "reward.tls_ca .*none cannot be used"),
        (lambda folder: {"tls_ca": folder / "spaced"}, "reward.tls_ca .*spaced cannot be used"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_by_its_setting_before_anything_starts(
    tmp_path: Path, make: Callable[[Path], dict[str, object]], words: str
) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "spaced").write_text(f"{TOKEN} {TOKEN}")
    with pytest.raises(UserError, match=words) as told:
        RewardClient(["127.0.0.1:1"], client_config(**make(tmp_path)))
    assert TOKEN not in str(told.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tls_certificate": "c.pem"}, "tls_certificate is given without tls_key"),
        ({"tls_key": "k.pem"}, "tls_key is given without tls_certificate"),
        ({"token_file": "t", "token_variable": "T"}, "token_file and token_variable are both given"),
    ],
)
@pytest.mark.parametrize("section", [RewardClientConfig, RewardServerConfig])
def test_settings_that_do_not_belong_together_are_refused(
    section: type[RewardClientConfig], values: dict[str, str], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        section.model_validate(values)


def test_a_certificate_without_tls_means_nothing() -> None:
    with pytest.raises(ValueError, match="no meaning without TLS"):
        RewardClientConfig(tls_certificate=Path("c.pem"), tls_key=Path("k.pem"))
    with pytest.raises(ValueError, match="without tls_certificate and tls_key"):
        RewardServerConfig(tls_client_ca=Path("ca.pem"))


def test_with_tls_addresses_and_hosts_off_this_machine_are_allowed() -> None:
    RewardClient(["rewards.internal:50051"], RewardClientConfig(tls=True))
    RewardServerConfig(host="0.0.0.0", tls_certificate=Path("c.pem"), tls_key=Path("k.pem"))


async def test_probes_that_know_neither_tls_nor_tokens_have_a_port_for_health_alone(pki: Pki) -> None:
    async with serving(NUMBER, pki.server()) as taken:
        health_port = int(taken.rpartition(":")[2])  # Free again when this server ends.
    config = pki.server(health_port=health_port, tls_client_ca=pki.authority.file, token_file=pki.token_file(TOKEN))
    async with serving(NUMBER, config), grpc.aio.insecure_channel(f"127.0.0.1:{health_port}") as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/trireme.reward.v1.RewardService/Describe")(b"", timeout=5)

    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_secured_service_is_checked_for_conformance_as_any_other(pki: Pki) -> None:
    config = pki.server(token_file=pki.token_file(TOKEN), tls_client_ca=pki.authority.file)
    right = ClientSecurity(
        tls_ca=pki.authority.file,
        tls_certificate=pki.client_certificate,
        tls_key=pki.client_key,
        token_file=pki.folder / "token",
    )
    async with serving(RewardFunction(lambda sample: 1.0), config) as address:
        names = {"reachable", "describe", "health", "reflection", "one sample"}
        findings = [f async for f in check_service(address, reference={}, security=right, skip=CHECKS.keys() - names)]
        blind = [f async for f in check_service(address, reference={}, timeout_s=0.3)]

    assert {finding.check for finding in findings if finding.verdict == "passed"} == names
    assert [finding.verdict for finding in blind] == ["failed"]
    assert "speaks TLS" in blind[0].text
