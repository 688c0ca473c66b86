"""How a live run can be reached by its operator, and the rule that no token crosses a network in plain text.

It must not know gRPC or what can be asked. Invariant: settings that were built either stay on this machine or name a
certificate; `check_certificate` tells whether that certificate can be used.
"""

import ssl
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from services.contracts.errors import UserError
from services.contracts.settings import Section
from services.transport.addresses import is_loopback, split_address


class ControlConfig(Section):
    """The control service: `trireme status`, `scale`, `pause`, `resume`, `checkpoint` and `drain` of a live run."""

    address: str = "127.0.0.1:0"
    """HOST:PORT to listen on; port 0 takes a free one. Off this machine only with `tls_certificate` and `tls_key`."""
    tls_certificate: Path | None = None
    """PEM file with the certificate (chain) to show at `address`; with it, `address` speaks TLS and nothing else."""
    tls_key: Path | None = None
    """PEM file with the certificate's key, without a passphrase."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Longest that the run may take over one request, in seconds; a checkpoint brings its own time."""

    @model_validator(mode="after")
    def _no_token_in_plain_text(self) -> Self:
        host, _ = split_address(self.address, what="control.address")
        if (self.tls_certificate is None) != (self.tls_key is None):
            given, missing = ("tls_key", "tls_certificate") if self.tls_key else ("tls_certificate", "tls_key")
            raise ValueError(f"control.{given} is given without control.{missing}; give both, or neither")
        if self.tls_certificate is None and not is_loopback(host):
            raise ValueError(
                f"control.address {self.address!r} can be reached from other machines, and its token would travel "
                "unencrypted; give control.tls_certificate and control.tls_key, or listen on 127.0.0.1"
            )
        return self


def check_certificate(config: ControlConfig) -> None:
    """Refuse a certificate or key that cannot be read or do not belong together.

    Raises:
        UserError: naming the files.
    """
    if config.tls_certificate is None or config.tls_key is None:
        return
    files = f"control.tls_certificate {config.tls_certificate} with control.tls_key {config.tls_key}"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.tls_certificate, config.tls_key, password="")
    except (OSError, ValueError) as error:
        raise UserError(f"{files} cannot be used: {error}; give a PEM certificate and its key") from error
