"""The certificates, keys and tokens behind the settings of `security`, read anew when their files change.

It must not know gRPC or any service. Invariants: no text made here holds a secret; a file that cannot be used
is told by its setting at first, and replaces nothing later.
"""

import logging
import os
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from services.contracts.errors import UserError
from services.transport.security import ClientSecurity, ServerCertificate, ServerSecurity

logger = logging.getLogger(__name__)

Content = TypeVar("Content")


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
