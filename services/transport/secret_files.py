"""The certificates, keys and tokens behind the settings of `security`, read anew when their files change.

It must not know gRPC or any service. Invariants: no text made here holds a secret; a file that cannot be used
is told by its setting at first, and replaces nothing later.
"""

import os
from pathlib import Path

from services.contracts.errors import UserError
from services.transport.key_material import KeyMaterial, Reloaded, check_key_pair, read_authorities, read_file
from services.transport.security import ClientSecurity, ServerCertificate, ServerSecurity


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
        return Reloaded(
            [path], lambda: _parsed_tokens(read_file(path, what, shown=False).decode(errors="replace"), what)
        )
    if security.token_variable is not None:
        found = _parsed_tokens(os.environ.get(security.token_variable, ""), f"{section}token_variable")
        return Reloaded([], lambda: found)
    return None


def _material(
    certificate: Path | None, key: Path | None, authorities: Path | None, what: str, section: str
) -> Reloaded[KeyMaterial]:
    def load() -> KeyMaterial:
        if certificate is not None and key is not None:
            check_key_pair(certificate, key, section=section)
        return KeyMaterial(
            authorities=read_authorities(authorities, what) if authorities else None,
            certificate=read_file(certificate, f"{section}tls_certificate") if certificate else None,
            key=read_file(key, f"{section}tls_key") if key else None,
        )

    return Reloaded([certificate, key, authorities], load)


def _parsed_tokens(text: str, what: str) -> tuple[str, ...]:
    found = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not found or not all(token.isascii() and token.isprintable() and " " not in token for token in found):
        raise UserError(f"{what} leads to no token; a token is a line of letters, digits and signs without a space")
    return found
