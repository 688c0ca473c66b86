"""Ports that processes agree on before one of them listens.

It must not know who meets there. Invariant: a port is none that the kernel gives to whoever asks for any, so that it
stays free until then.
"""

import random
import socket
from contextlib import suppress

from services.contracts.errors import UserError

PORTS = range(20_000, 32_000)
"""Above those of Ray's own processes, below Linux's ephemeral ones."""


def free_port(host: str) -> int:
    """A port of this machine's address `host` on which nothing listens. Raises `UserError` where there is none."""
    lots = random.SystemRandom()  # The seeded generator would send every process of one seed to the same port.
    for port in lots.sample(PORTS, len(PORTS)):
        with socket.socket() as listener, suppress(OSError):
            listener.bind((host, port))
            return port
    raise UserError(f"no port from {PORTS[0]} to {PORTS[-1]} is free at {host}; see what holds them (`ss -ltn`)")
