"""Why no connection comes about, where TLS is the reason: asked of the server itself, with Python's own TLS.

gRPC says that a handshake failed, and at some faults not even that. It must not know gRPC. Invariant: what is found
names the setting to change, and no secret; the whole takes no longer than its deadlines.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable

from services.transport.addresses import split_address
from services.transport.security import ClientSecurity

CONNECT_S = 2.0
ALERT_S = 0.5

EXPIRED = 10
NOT_YET_VALID = 9
WRONG_NAME = (62, 64)  # host name, IP address
NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")


async def find_tls_fault(
    address: str, security: ClientSecurity, *, ip: str | None = None, timeout_s: float = CONNECT_S
) -> str | None:
    """What bars the way to the server, in words that follow its address; None when TLS is not the reason.

    Args:
        address: HOST:PORT; the certificate must name the host, unless `security` has another name.
        ip: the one machine behind the host that is meant.
        timeout_s: longest wait for the connection, and for each message of the handshake.
    """
    host, port = split_address(address, what="reward address")
    host = host.strip("[]")
    find = _fault_behind_tls if security.speaks_tls else _fault_in_plaintext

    def connect() -> socket.socket:
        return socket.create_connection((ip or host, port), timeout=timeout_s)

    return await asyncio.to_thread(find, connect, security.tls_server_name or host, security)


def _fault_behind_tls(connect: Callable[[], socket.socket], name: str, security: ClientSecurity) -> str | None:
    try:
        context = ssl.create_default_context(cafile=security.tls_ca)
        if security.tls_certificate is not None and security.tls_key is not None:
            context.load_cert_chain(security.tls_certificate, security.tls_key)
    except OSError:  # The files are just being replaced.
        return None
    try:
        with connect() as plain, _wrapped(context, plain, name) as connection:
            return _fault_after_handshake(connection, security)
    except ssl.SSLCertVerificationError as error:
        return _fault_in_certificate(error, name, security)
    except ssl.SSLError as error:
        return _fault_in_handshake(error.reason or "", security)
    except OSError:  # Nobody is there, or nothing is said: not for TLS to explain.
        return None


def _fault_after_handshake(connection: ssl.SSLSocket, security: ClientSecurity) -> str | None:
    """A client learns only by reading whether its certificate, or its want of one, was accepted (TLS 1.3)."""
    connection.settimeout(ALERT_S)
    try:
        is_accepted = bool(connection.recv(1))
    except ConnectionResetError:
        is_accepted = False
    return None if is_accepted else _fault_in_own_certificate(security)


def _fault_in_plaintext(connect: Callable[[], socket.socket], name: str, security: ClientSecurity) -> str | None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with connect() as plain, _wrapped(context, plain, name):
            return (
                f"speaks TLS; set {security.section}tls_ca to the authority of its certificate, or "
                f"{security.section}tls to true"
            )
    except OSError:
        return None


def _wrapped(context: ssl.SSLContext, plain: socket.socket, name: str) -> ssl.SSLSocket:
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(plain, server_hostname=name)


def _fault_in_certificate(error: ssl.SSLCertVerificationError, name: str, security: ClientSecurity) -> str:
    if error.verify_code in WRONG_NAME:
        return (
            f"shows a certificate that does not name {name}; use a name that it has in {security.section}addresses, "
            f"or set {security.section}tls_server_name"
        )
    if error.verify_code == EXPIRED:
        return (
            "shows a certificate that has expired; renew it there (tls_certificate), and look at this machine's clock"
        )
    if error.verify_code == NOT_YET_VALID:
        return "shows a certificate that is not valid yet; look at the clocks of both machines"
    authority = "this machine trusts" if security.tls_ca is None else f"{security.section}tls_ca vouches for"
    return f"shows a certificate that is none that {authority}: {error.verify_message}"


def _fault_in_handshake(reason: str, security: ClientSecurity) -> str | None:
    if reason in NOT_TLS:
        return (
            f"does not speak TLS; give it tls_certificate and tls_key, or leave out {security.section}tls and "
            f"{security.section}tls_ca"
        )
    if "ALERT" not in reason:
        return None
    is_about_us = "CERT" in reason or "UNKNOWN_CA" in reason
    return _fault_in_own_certificate(security) if is_about_us else f"refuses the TLS handshake ({reason})"


def _fault_in_own_certificate(security: ClientSecurity) -> str:
    if security.tls_certificate is None:
        return (
            "closes the connection after the TLS handshake, as a server does that asks for a client certificate; set "
            f"{security.section}tls_certificate and {security.section}tls_key"
        )
    return (
        f"does not accept the client certificate in {security.section}tls_certificate: it has expired, or its "
        "authority is another"
    )
