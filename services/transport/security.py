"""Who may talk to a service, and how both ends prove it: the settings of TLS and tokens, and the rules for them.

It must not know gRPC, any service, or what is in the files. Invariants: a secret is never a setting, only its file or
variable is; nothing travels to another machine in plain text unless the user said so.
"""

from pathlib import Path
from typing import ClassVar, Self

from pydantic import model_validator

from services.contracts.errors import UserError
from services.contracts.settings import Section
from services.transport.addresses import is_loopback, split_address


class ServerCertificate(Section):
    """What a server shows of itself."""

    tls_certificate: Path | None = None
    """PEM file with the certificate (chain) to show; with it, and its key, the address speaks TLS and nothing else."""
    tls_key: Path | None = None
    """PEM file with the certificate's key, without a passphrase."""

    @model_validator(mode="after")
    def _whole_pair(self) -> Self:
        refuse_half(tls_certificate=self.tls_certificate, tls_key=self.tls_key)
        return self


class ServerSecurity(ServerCertificate):
    """What a server shows of itself and asks of its callers. Its files are read again when they change."""

    tls_client_ca: Path | None = None
    """PEM file with the authorities of which a caller must show a certificate; without it none is asked for."""
    token_file: Path | None = None
    """File with the tokens that are accepted, one a line; each call must carry one of them."""
    token_variable: str | None = None
    """Environment variable with the token that is accepted, instead of a file."""
    allow_plaintext: bool = False
    """Permit a host other than this machine's loopback, although nothing is encrypted."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        refuse_two_tokens(self.token_file, self.token_variable)
        if self.tls_client_ca and not self.tls_certificate:
            raise ValueError(
                "tls_client_ca is given without tls_certificate and tls_key, and so without TLS; give both"
            )
        return self


class ClientSecurity(Section):
    """How a client knows its servers, and proves itself to them. Its files are read again when they change."""

    section: ClassVar[str] = ""
    """What errors put before a setting's name, such as `reward.`, so that the one in question is found."""

    tls: bool = False
    """Speak TLS with servers whose certificate descends from an authority that this machine trusts."""
    tls_ca: Path | None = None
    """Speak TLS with servers whose certificate descends from an authority in this PEM file."""
    tls_certificate: Path | None = None
    """PEM file with the certificate (chain) to show to servers that ask for one."""
    tls_key: Path | None = None
    """PEM file with that certificate's key, without a passphrase."""
    tls_server_name: str | None = None
    """Name that a server's certificate must have; by default the host of its address."""
    token_file: Path | None = None
    """File whose first line is the token that each call carries."""
    token_variable: str | None = None
    """Environment variable with that token, instead of a file."""
    allow_plaintext: bool = False
    """Permit addresses off this machine, although completions and references travel there unencrypted."""

    @property
    def speaks_tls(self) -> bool:
        return self.tls or self.tls_ca is not None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        refuse_half(tls_certificate=self.tls_certificate, tls_key=self.tls_key)
        refuse_two_tokens(self.token_file, self.token_variable)
        if (self.tls_certificate or self.tls_server_name) and not self.speaks_tls:
            raise ValueError(
                "tls_certificate and tls_server_name have no meaning without TLS; give tls_ca, or tls: true"
            )
        return self


def refuse_plaintext(address: str, *, what: str, is_secure: bool, remedy: str) -> None:
    """Refuse what is no HOST:PORT, and a host off this machine where nothing is encrypted.

    Raises:
        UserError: naming the address, the rule and the remedy.
    """
    host, _ = split_address(address, what=what)
    if not is_secure and not is_loopback(host):
        raise UserError(f"{what} {address!r} reaches beyond this machine, and nothing would be encrypted; {remedy}")


def refuse_half(**pair: object) -> None:
    """Refuse one of two settings without the other. Raises ValueError."""
    given = [name for name, value in pair.items() if value is not None]
    if len(given) == 1:
        (missing,) = pair.keys() - given
        raise ValueError(f"{given[0]} is given without {missing}; give both, or neither")


def refuse_two_tokens(file: object, variable: object) -> None:
    """Refuse two sources of one token. Raises ValueError."""
    if file is not None and variable is not None:
        raise ValueError("token_file and token_variable are both given; give one of them")
