"""Certificates and keys as bytes, from files that may change while a service lives.

It must not know settings, gRPC or any service, so that a command on a live run loads neither. Invariants: no text made
here holds a secret; a file that cannot be used replaces nothing of what was read before.
"""

import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from services.contracts.errors import UserError

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
    return read_file(path, what)


def read_file(path: Path, what: str, *, shown: bool = True) -> bytes:
    """What is in `path`, which setting `what` names; without the path where it is not `shown`. Raises `UserError`."""
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
