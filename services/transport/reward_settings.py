"""How a reward service is called: the client's settings, and the rule for addresses.

It must not know gRPC or any reward, so that reading a configuration stays cheap. Invariant: an address that passed
`check_addresses` is HOST:PORT, and nothing travels to another machine in plain text unless the user said so.
"""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from services.transport.security import ClientSecurity, refuse_plaintext


class RewardClientConfig(ClientSecurity):
    """Deadlines, retries, limits and security of the calls to a reward service."""

    section: ClassVar[str] = "reward."

    timeout_s: float = Field(default=60.0, gt=0)
    """Deadline of one call, in seconds; a call that misses it is made again, on another server where there is one."""
    max_attempts: int = Field(default=5, ge=1)
    """Tries for a sample that fails retryably, and for a call that fails in the service, before it counts as failed."""
    backoff_initial_s: float = Field(default=0.2, gt=0)
    """Longest pause before the first retry, in seconds; it doubles with each, and the pause is random up to it."""
    backoff_max_s: float = Field(default=2.5, gt=0)
    """Longest pause before any retry, in seconds; with the time to connect anew, a run goes on 5 s after an outage."""
    max_in_flight_calls: int = Field(default=32, ge=1)
    """Calls under way at the same time, over all servers; more wait here."""
    max_request_bytes: int = Field(default=4_000_000, ge=1024)
    """Largest request sent, in bytes; gRPC servers refuse more than 4 MiB unless they are told otherwise."""
    max_response_bytes: int = Field(default=64_000_000, ge=1024)
    """Largest response accepted, in bytes."""
    unavailable_budget_s: float = Field(default=300.0, ge=0)
    """How long to go on trying while no server answers, in seconds; then the run stops with what it has saved."""
    eject_after: int = Field(default=2, ge=1)
    """Missed deadlines in a row after which a server gets no call until it answers a probe; one that cannot be reached
    gets none at once."""
    eject_s: float = Field(default=10.0, ge=0)
    """How long such a server sits out after that, in seconds, while another is on duty."""
    refresh_s: float = Field(default=10.0, gt=0)
    """Seconds between two looks at what may change while a run goes on: machines behind a name, certificate files."""


def check_addresses(addresses: Sequence[str], security: ClientSecurity) -> None:
    """Refuse what is no HOST:PORT, and a host off this machine without TLS unless plain text is allowed.

    Raises:
        UserError: naming the address, the rule and the fix.
    """
    for address in addresses:
        refuse_plaintext(
            address,
            what="reward address",
            is_secure=security.speaks_tls or security.allow_plaintext,
            remedy="set tls_ca (or tls: true), or allow_plaintext: true if the network between is trusted",
        )
