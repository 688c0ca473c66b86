"""Who may talk to a service, and how both ends prove it: the settings of TLS and tokens, and the files behind them.

It must not know gRPC or any service. Invariants: a secret is never a setting, only its file or variable is; no text
made here holds one; a file that changes is read again, and one that cannot be used then replaces nothing.
"""

import logging
import os
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Self, TypeVar

from pydantic import model_validator

from services.contracts.errors import UserError
from services.contracts.settings import Section
from services.transport.addresses import is_loopback, split_address

logger = logging.getLogger(__name__)

Content = TypeVar("Content")


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


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyMaterial:
    """What TLS needs, as PEM: the other end's authorities, and one's own certificate with its key."""

    authorities: bytes | None = field(default=None, repr=False)
    certificate: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)


class Reloaded(Generic[Content]):
    """What `load` makes of `files`, made again when one of them changes.

    Raises:
        UserError: from the constructor, what `load` raises. Later that is logged, and what was read before stays.
    """

    def __init__(self, files: Sequence[Path | None], load: Callable[[], Content]) -> None:
        self._files = [file for file in files if file is not None]
        self._load = load
        self._stamp = self._read_stamp()
        self._content = load()

    def get(self) -> Content:
        stamp = self._read_stamp()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._content = self._load()
                logger.info("read anew: %s", ", ".join(map(str, self._files)))
            except UserError as error:
                logger.error("%s; going on with what was read before", error)
        return self._content

    def _read_stamp(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(file) for file in self._files]


def server_material(security: ServerCertificate, *, section: str = "") -> Reloaded[KeyMaterial] | None:
    """The server's certificate, and the authorities of its callers; None without TLS.

    Args:
        section: what errors put before a setting's name, such as `control.`.

    Raises:
        UserError: naming the setting whose file cannot be used.
    """
    if security.tls_certificate is None:
        return None
    authorities = security.tls_client_ca if isinstance(security, ServerSecurity) else None
    return _material(security.tls_certificate, security.tls_key, authorities, f"{section}tls_client_ca", section)


def client_material(security: ClientSecurity, *, section: str = "") -> Reloaded[KeyMaterial] | None:
    """The servers' authorities, and the client's own certificate; None without TLS. Raises `UserError` likewise."""
    if not security.speaks_tls:
        return None
    return _material(security.tls_certificate, security.tls_key, security.tls_ca, f"{section}tls_ca", section)


def tokens(security: ServerSecurity | ClientSecurity, *, section: str = "") -> Reloaded[tuple[str, ...]] | None:
    """The tokens, of which a client shows the first; None where there is none.

    Raises:
        UserError: naming the setting that leads to no token, and never what it leads to.
    """
    if security.token_file is not None:
        path, what = security.token_file, f"{section}token_file"
        return Reloaded([path], lambda: _parsed_tokens(_read(path, what, shown=False).decode(errors="replace"), what))
    if security.token_variable is not None:
        found = _parsed_tokens(os.environ.get(security.token_variable, ""), f"{section}token_variable")
        return Reloaded([], lambda: found)
    return None


def check_key_pair(certificate: Path, key: Path, *, section: str = "") -> None:
    """Refuse a certificate and key that cannot be read or are no pair. Raises `UserError` naming the files."""
    files = f"{section}tls_certificate {certificate} with {section}tls_key {key}"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        raise UserError(f"{files} cannot be used: {error}; give a PEM certificate and its key") from error


def read_authorities(path: Path, what: str) -> bytes:
    """The PEM certificates in `path`, which setting `what` names. Raises `UserError`."""
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:
        raise UserError(f"{what} {path} cannot be used: {error}; give a file with PEM certificates") from error
    return _read(path, what)


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


def _material(
    certificate: Path | None, key: Path | None, authorities: Path | None, what: str, section: str
) -> Reloaded[KeyMaterial]:
    def load() -> KeyMaterial:
        if certificate is not None and key is not None:
            check_key_pair(certificate, key, section=section)
        return KeyMaterial(
            authorities=read_authorities(authorities, what) if authorities else None,
            certificate=_read(certificate, f"{section}tls_certificate") if certificate else None,
            key=_read(key, f"{section}tls_key") if key else None,
        )

    return Reloaded([certificate, key, authorities], load)


def _parsed_tokens(text: str, what: str) -> tuple[str, ...]:
    found = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not found or not all(token.isascii() and token.isprintable() and " " not in token for token in found):
        raise UserError(f"{what} leads to no token; a token is a line of letters, digits and signs without a space")
    return found


def _read(path: Path, what: str, *, shown: bool = True) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{what}{f' {path}' if shown else ''} cannot be read: {error.strerror}") from error


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
