"""Settings of reward servers, and the section `reward` of a run.

It must not load a reward or import gRPC. Invariant: a `RewardConfig` says in exactly one way where rewards come from.
"""

import os
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from reward_server.part_config import Parts
from reward_server.part_config import RewardServiceConfig as RewardServiceConfig  # The section's items belong to it.
from services.contracts.settings import Section
from services.transport.reward_settings import RewardClientConfig, check_addresses
from services.transport.security import ServerSecurity, refuse_plaintext

READY_PREFIX = "reward server listening on "
"""What a server prints before its address, on one line of standard output, once it answers."""


class RewardServerConfig(ServerSecurity):
    """One reward server: where it listens and to whom, its limits, and how it runs the reward."""

    host: str = "127.0.0.1"
    """Interface to listen on."""
    port: int = Field(default=50051, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and prints it."""
    health_port: int | None = Field(default=None, ge=0, le=65535)
    """Another port, which answers grpc.health.v1 alone, in plain text and without a token: Kubernetes' probes know
    neither."""
    timeout_s: float = Field(default=20.0, gt=0)
    """Longest run of the reward on one sample (or one batch, for a batched reward), in seconds."""
    num_threads: int = Field(default=8, ge=1)
    """Calls of a reward function at the same time; 1 for a function that is not thread-safe, which is then not called
    while a call that outlived timeout_s runs still."""
    num_processes: int = Field(default_factory=lambda: min(4, os.cpu_count() or 1), ge=1)
    """Child processes of a reward that is scored in isolation."""
    isolated_memory_bytes: int = Field(default=4 << 30, ge=0)
    """Address space of each such process, in bytes; 0 for no limit."""
    max_batch_samples: int = Field(default=64, ge=1)
    """Most samples that a batched reward is given at once, over all requests."""
    max_wait_s: float = Field(default=0.005, ge=0)
    """Longest wait for a batch to fill, in seconds; only a batched reward waits."""
    max_samples_per_call: int = Field(default=1024, ge=1)
    """Most samples in one call; more are refused with INVALID_ARGUMENT."""
    max_message_bytes: int = Field(default=16 << 20, ge=1024)
    """Largest request, in bytes; a larger one is refused with RESOURCE_EXHAUSTED."""
    max_pending_samples: int = Field(default=16_384, ge=1)
    """Samples accepted and not yet answered; a call beyond is refused with RESOURCE_EXHAUSTED, to be tried again."""
    max_calls: int = Field(default=4096, ge=1)
    """Calls under way at the same time, those that watch the health included; one more is refused likewise."""
    drain_s: float = Field(default=10.0, ge=0)
    """Time for calls under way to end after SIGTERM or SIGINT, in seconds."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port on which Prometheus finds metrics; 0 takes a free one and logs it, null serves none."""
    metrics_host: str = "127.0.0.1"
    """Interface for the metrics, in plain text and without a token; they hold counts and versions but no text."""
    log_format: Literal["text", "json"] = "text"
    """Lines of the log for people, or a JSON object each, with the ids of the call and of its trace."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged; debug has a line for every call."""

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if self.max_pending_samples < self.max_samples_per_call:
            raise ValueError(
                f"max_pending_samples is {self.max_pending_samples}, less than max_samples_per_call "
                f"({self.max_samples_per_call}): a full call could never be accepted"
            )
        refuse_plaintext(
            f"{self.host}:{self.port}",
            what="host and port",
            is_secure=self.tls_certificate is not None or self.allow_plaintext,
            remedy="give tls_certificate and tls_key, or allow_plaintext: true if the network is trusted",
        )
        return self


class RewardServerFile(Section):
    """A YAML file for `trireme reward serve`."""

    services: Parts = Field(min_length=1)
    """The parts of the reward that is served: a weighted sum behind gates, see docs/reward_composition.md."""
    server: RewardServerConfig = RewardServerConfig()
    """The server's own settings."""


class OwnServerConfig(RewardServerConfig):
    """The server that a run starts for itself."""

    port: int = Field(default=0, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""


class RewardConfig(RewardClientConfig):
    """Where rewards come from: running servers by address, or services that the run itself starts."""

    addresses: tuple[str, ...] = ()
    """Servers of one reward service, each HOST:PORT; calls go round all of them."""
    services: Parts = ()
    """Rewards for which the run starts one server on this machine: a weighted sum behind gates."""
    server: OwnServerConfig = OwnServerConfig()
    """Settings of the server that the run starts for `services`."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.addresses) == bool(self.services):
            found = "both" if self.addresses else "neither"
            raise ValueError(
                f"give either {self.section}addresses (servers that run already) or {self.section}services (rewards "
                f"that the run starts itself); {found} was given"
            )
        check_addresses(self.addresses, self)
        return self


def faults_in_words(error: ValidationError) -> str:
    """Which settings are wrong and why, without their values, which may be secrets in the wrong place."""
    return "; ".join(
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].removeprefix('Value error, ')}" for fault in error.errors()
    )
