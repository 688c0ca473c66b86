"""The replicas of a reward service: which there are, and which gets the next call.

It must not know what a call is about. Invariants: each socket address behind each name is a replica with its own
connection; a call goes to the replica on duty with the fewest calls under way, in turn among equals; names are looked
up and certificates read anew while calls go on, and a connection that is given up for it ends its calls before.
"""

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

from services.transport.addresses import split_address
from services.transport.key_material import KeyMaterial
from services.transport.reward_endpoint import Endpoint, open_channel
from services.transport.reward_retry import Outage
from services.transport.reward_settings import RewardClientConfig
from services.transport.reward_standing import Rank
from services.transport.reward_tally import RewardTally
from services.transport.secret_files import client_material, tokens
from services.transport.tls_diagnosis import find_tls_fault

logger = logging.getLogger(__name__)

LOOKUP_S = 5.0

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""The IP addresses behind a host name; raises OSError."""


class ReplicaKey(NamedTuple):
    """What makes a replica the same as before: its address, the machine behind it, and what it is connected with."""

    address: str
    target: str
    material: KeyMaterial | None


class Replicas:
    """All replicas behind `addresses`. Used from one event loop, which need not run yet when it is made."""

    def __init__(
        self, addresses: Sequence[str], config: RewardClientConfig, look_up: Lookup, tally: RewardTally
    ) -> None:
        self._addresses = addresses
        self._config = config
        self._look_up = look_up
        self._tally = tally
        self._material = client_material(config, section=config.section)
        self._tokens = tokens(config, section=config.section)
        self._endpoints: dict[ReplicaKey, Endpoint] = {}
        self._lookup_faults: list[str] = []
        self._refreshing: asyncio.Task[None] | None = None
        self._refresh_at = float("-inf")
        self._retiring: dict[asyncio.Task[None], Endpoint] = {}
        self._turn = 0

    async def all(self) -> list[Endpoint]:
        """Every replica that is known; there is at least one.

        Raises:
            Outage: no name could be looked up.
        """
        if time.monotonic() >= self._refresh_at and (self._refreshing is None or self._refreshing.done()):
            self._refreshing = asyncio.create_task(self._refresh(), name="refresh of the reward servers")
        if not self._endpoints and self._refreshing is not None:
            await asyncio.shield(self._refreshing)
        if not self._endpoints:
            raise Outage("; ".join(self._lookup_faults))
        return list(self._endpoints.values())

    async def pick(self, *, prefer: Endpoint | None = None, avoid: Endpoint | None = None) -> Endpoint:
        """The replica for the next call: not `avoid` where another is on duty, and then `prefer` where that is.

        Raises:
            Outage: none may be given a call now; says why for each.
        """
        endpoints = await self.all()
        first = self._turn % len(endpoints)
        self._turn += 1
        in_turn = endpoints[first:] + endpoints[:first]
        ranks = {endpoint: endpoint.rank for endpoint in in_turn}
        best = min(in_turn, key=lambda e: (ranks[e], e is avoid, e is not prefer, e.standing.num_calls))
        if ranks[best] is Rank.OUT:
            raise Outage(f"no reward server may be given a call now: {'; '.join(e.trouble for e in endpoints)}")
        return best

    async def close(self) -> None:
        """Close every connection; calls under way are cancelled."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        for task in self._retiring:
            task.cancel()
        endpoints = [*self._endpoints.values(), *self._retiring.values()]
        await asyncio.gather(*(endpoint.close() for endpoint in endpoints))

    async def _refresh(self) -> None:
        wanted: list[ReplicaKey] = []
        faults = []
        material = self._material.get() if self._material else None
        for address in self._addresses:
            try:
                targets = await self._targets(address)
            except (OSError, UnicodeError) as error:
                faults.append(f"{address} cannot be looked up: {error or type(error).__name__}")
                targets = [key.target for key in self._endpoints if key.address == address]
            wanted += [ReplicaKey(address, target, material) for target in targets]
        self._refresh_at = time.monotonic() + self._config.refresh_s
        self._lookup_faults = faults
        if faults and wanted:
            logger.warning("going on with the reward servers that were known: %s", "; ".join(faults))
        known = self._endpoints
        self._endpoints = {key: known.get(key) or self._connect(key) for key in wanted}
        for key in known.keys() - self._endpoints.keys():
            self._retire(known[key])

    async def _targets(self, address: str) -> list[str]:
        host, port = split_address(address, what="reward address")
        if is_numeric(host):
            return [grpc_target(host.strip("[]"), port)]
        async with asyncio.timeout(LOOKUP_S):
            found = await self._look_up(host, port)
        return [grpc_target(ip, port) for ip in sorted(set(found))]

    def _connect(self, key: ReplicaKey) -> Endpoint:
        socket_address = key.target.partition(":")[2]
        ip, _ = split_address(socket_address, what="socket address")
        authority = self._config.tls_server_name or key.address
        return Endpoint(
            key.address if socket_address == key.address else f"{key.address} ({socket_address})",
            open_channel(key.target, authority=authority, config=self._config, material=key.material),
            self._config,
            self._tally,
            token=self._token,
            find_fault=partial(find_tls_fault, key.address, self._config, ip=ip.strip("[]")),
        )

    def _token(self) -> str | None:
        return self._tokens.get()[0] if self._tokens else None

    def _retire(self, endpoint: Endpoint) -> None:
        logger.info("%s is gone, or connected anew; calls have %g s to end", endpoint.address, self._config.timeout_s)
        task = asyncio.create_task(endpoint.close(grace_s=self._config.timeout_s))
        self._retiring[task] = endpoint
        task.add_done_callback(self._retiring.pop)


async def look_up(host: str, port: int) -> list[str]:
    """Asks the machine's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def grpc_target(ip: str, port: int) -> str:
    return f"ipv6:[{ip}]:{port}" if ":" in ip else f"ipv4:{ip}:{port}"
