"""How a live run can be reached by its operator, and the rule that no token crosses a network in plain text.

It must not know gRPC or what can be asked. Invariant: settings that were built either stay on this machine or name a
certificate.
"""

from typing import Self

from pydantic import Field, model_validator

from services.transport.security import ServerCertificate, refuse_plaintext


class ControlConfig(ServerCertificate):
    """The control service: `trireme status`, `scale`, `pause`, `resume`, `checkpoint` and `drain` of a live run."""

    address: str = "127.0.0.1:0"
    """HOST:PORT to listen on; port 0 takes a free one. Off this machine only with `tls_certificate` and `tls_key`."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Longest that the run may take over one request, in seconds; a checkpoint brings its own time."""

    @model_validator(mode="after")
    def _no_token_in_plain_text(self) -> Self:
        refuse_plaintext(
            self.address,
            what="control.address",
            is_secure=self.tls_certificate is not None,
            remedy="give control.tls_certificate and control.tls_key for its token's sake, or listen on 127.0.0.1",
        )
        return self
