"""Addresses of services: HOST:PORT, and whether traffic to one stays on this machine.

It must not know what is served there. Invariant: only a host that is certain to be this machine counts as loopback.
"""

import ipaddress

from services.contracts.errors import UserError


def split_address(address: str, *, what: str) -> tuple[str, int]:
    """Host and port of `address`; an IPv6 host keeps its brackets.

    Args:
        what: whose address it is, for the error.

    Raises:
        UserError: when it is not HOST:PORT.
    """
    scheme, is_url, _ = address.partition("://")
    if is_url:
        raise UserError(f"{what} {address!r} is a URL, and HOST:PORT is wanted; leave out {scheme}:// and any path")
    host, separator, port = address.rpartition(":")
    if not separator or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise UserError(f"{what} {address!r} is not HOST:PORT, such as 127.0.0.1:50051")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether traffic to `host` stays on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
