"""Weights by broadcast: the learner sends each bucket once, and every receiver that asked for it gets it on its device.

    receiver:  ask ─▶ seat ─▶ join the group, or keep it ─▶ bucket, bucket, … ─▶ (broken: leave it, ask again)
    sender:    (requests settle) ─▶ seats ─▶ the same group, or a new one ─▶ bucket, bucket, …

It must not know NCCL: `Groups` makes the groups. Published weights lie in host memory, so that the learner trains on
while a thread of its own serves them, also to a worker that joins late. Invariants: the learner's own thread waits for
nobody; every wait has a deadline; after a loss the next round's group is made of those who ask, which the dead do not.
"""

import itertools
import logging
import secrets
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.distributed import DistError

from services.contracts.errors import DeadlineExceeded, WeightSyncError
from services.contracts.records import Publication, WeightManifest
from services.transport.deadlines import within
from services.transport.meeting_point import Guest, Host
from services.transport.rounds import Ask, Roster, Seat, decide, newest_of_each, seats

KEPT_VERSIONS = 2
_POLL_S = 0.005
_END_S = 5.0
_LOST = "a member is dead, frozen or cut off; the group is made anew of those who ask again"
_log = logging.getLogger(__name__)


class Group(Protocol):
    """A communicator. Its calls block until every member has come, or until `abort`, or for ever."""

    def broadcast(self, bucket: torch.Tensor) -> None:
        """Rank 0's bucket overwrites everyone else's; returns once it has."""
        ...

    def abort(self) -> None:
        """Leave, whatever the others do; ends a `broadcast` under way."""
        ...


class Groups(Protocol):
    """Makes communicators between buffers on `device`."""

    @property
    def device(self) -> torch.device: ...

    def new_token(self) -> str:
        """What all members of a group to come must know."""
        ...

    def join(self, token: str, *, rank: int, world_size: int) -> Group:
        """Enter a group; blocks until every member has."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long a round may take.

    Attributes:
        join_s: seconds for all members to enter a group.
        bucket_s: seconds for one bucket to arrive everywhere.
        settle_s: seconds after the last request until a group of other members than before is made.
        max_rounds: rounds that a receiver tries for one version.
    """

    join_s: float = 10.0
    bucket_s: float = 10.0
    settle_s: float = 0.3
    max_rounds: int = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """Where a publication is to be had: the sender's address, and the publication's number there."""

    host: str
    port: int
    number: int


class BroadcastSender:
    """The learner's side.

    Args:
        name: of the transport, as workers know it.
        host: an address of this machine that every receiver reaches.
    """

    device = torch.device("cpu")
    spare: Sequence[torch.Tensor] = ()

    def __init__(self, name: str, host: str, groups: Groups, patience: Patience | None = None) -> None:
        self._name = name
        self._numbers = itertools.count()
        self._session = _Session(Host(host), groups, patience or Patience())
        thread = threading.Thread(target=self._session.serve, name="weight broadcast", daemon=True)
        thread.start()
        # At the interpreter's exit too: a thread that is cut off inside torch there takes the process down with it.
        weakref.finalize(self, _end, self._session.stop, thread)

    def publish(self, manifest: WeightManifest, buckets: Sequence[torch.Tensor]) -> Publication:
        number = next(self._numbers)
        self._session.keep(number, buckets)
        host, port = self._session.host.address
        return Publication(
            transport=self._name, manifest=manifest, locations=(Offer(host=host, port=port, number=number),)
        )


def _end(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    thread.join(_END_S)


class _Session:
    """What the sender's thread works on."""

    def __init__(self, host: Host, groups: Groups, patience: Patience) -> None:
        self.host = host
        self.stop = threading.Event()
        self._groups = groups
        self._patience = patience
        self._kept: dict[int, Sequence[torch.Tensor]] = {}
        self._lock = threading.Lock()
        self._waiting: list[Ask] = []
        self._last_ask = 0.0
        self._roster: Roster | None = None
        self._group: Group | None = None

    def keep(self, number: int, buckets: Sequence[torch.Tensor]) -> None:
        with self._lock:
            self._kept[number] = buckets
            for old in sorted(self._kept)[:-KEPT_VERSIONS]:
                del self._kept[old]

    def serve(self) -> None:
        while not self.stop.wait(_POLL_S):
            try:
                self._serve_once()
            except Exception:  # noqa: BLE001  # The thread's edge: receivers miss their buckets, and ask again.
                _log.exception("a round of the weight broadcast failed")
                self._leave()
        self._leave()

    def _serve_once(self) -> None:
        if asks := self.host.new_asks():
            self._last_ask = time.monotonic()
            self._waiting = newest_of_each([*self._waiting, *asks])
        if not self._waiting:
            return
        number = self._waiting[0].publication
        asks = [ask for ask in self._waiting if ask.publication == number]
        with self._lock:
            buckets = self._kept.get(number)
        if buckets is None:
            self._refuse(asks, f"weights number {number} are no longer kept; fetch the newest version")
            return
        quiet_s = time.monotonic() - self._last_ask
        decision = decide(asks, self._roster, quiet_s=quiet_s, settle_s=self._patience.settle_s)
        if decision != "wait":
            self._take(asks)
            self._send(asks, buckets, anew=decision == "new group")

    def _send(self, asks: Sequence[Ask], buckets: Sequence[torch.Tensor], *, anew: bool) -> None:
        """One round. A member that does not come in time ends it for all."""
        if anew:
            self._leave()
        token = self._groups.new_token() if anew else ""
        roster = self._roster or Roster(group=secrets.token_hex(8), members=tuple(ask.member for ask in asks))
        given = seats(asks, roster, token=token)
        for ticket, seat in given.items():
            self.host.answer(ticket, seat)
        try:
            group = self._group or _enter(self._groups, token, 0, len(roster.members) + 1, self._patience)
            self._roster, self._group = roster, group
            for bucket in buckets[given[asks[0].ticket].first_bucket :]:
                _exchange(group, bucket.to(self._groups.device), self._patience)
        except (DeadlineExceeded, WeightSyncError) as error:
            _log.warning("weights did not reach %s: %s", ", ".join(roster.members), error)
            self._leave()

    def _take(self, asks: Sequence[Ask]) -> None:
        self._waiting = [ask for ask in self._waiting if ask not in asks]

    def _refuse(self, asks: Sequence[Ask], reason: str) -> None:
        self._take(asks)
        for ask in asks:
            self.host.answer(ask.ticket, Seat(refusal=reason))

    def _leave(self) -> None:
        if self._group is not None:
            self._group.abort()
        self._roster = self._group = None


@dataclass(slots=True)
class _Held:
    """What a receiver keeps between two versions: the sender's address, its line to it, and the group it is in."""

    address: tuple[str, int]
    guest: Guest
    name: str = ""
    group: Group | None = field(default=None)

    def leave(self) -> None:
        if self.group is not None:
            self.group.abort()
        self.name, self.group = "", None


class BroadcastReceiver:
    """A receiver. Another learner (another address) ends what it held of the one before.

    Args:
        member: a name that no other receiver has.
    """

    def __init__(self, member: str, groups: Groups, patience: Patience | None = None) -> None:
        self._member = member
        self._groups = groups
        self._patience = patience or Patience()
        self._held: _Held | None = None

    def receive(self, publication: Publication, *, timeout_s: float) -> Iterator[torch.Tensor]:
        """Buckets in fresh memory each, since who loads them may keep views. A broken round is followed by another."""
        (offer,) = publication.locations
        assert isinstance(offer, Offer)
        deadline = time.monotonic() + timeout_s
        sizes = publication.manifest.bucket_bytes
        received, rounds = 0, 0
        while received < len(sizes):
            held = self._meet(offer, deadline)
            rounds += 1
            try:
                seat = self._seat(held, offer.number, received, deadline)
                group = self._group(held, seat)
                for index in range(seat.first_bucket, len(sizes)):
                    bucket = torch.empty(sizes[index], dtype=torch.uint8, device=self._groups.device)
                    _exchange(group, bucket, self._patience)
                    if index == received:
                        received += 1
                        yield bucket
            except (_Broken, DeadlineExceeded) as error:
                held.leave()
                if time.monotonic() >= deadline or rounds == self._patience.max_rounds:
                    raise DeadlineExceeded(
                        waited_for=f"version {publication.manifest.version} of the weights, in {rounds} rounds of the "
                        f"learner's broadcast, the last of which failed ({error})",
                        waited_s=timeout_s - max(deadline - time.monotonic(), 0.0),
                        advice="see the learner's log for who is missing, or raise rollout.sync_timeout_s",
                    ) from error
            except BaseException:
                held.leave()  # Whoever loads them gave up in the middle.
                raise

    def _meet(self, offer: Offer, deadline: float) -> _Held:
        address = (offer.host, offer.port)
        if self._held is None or self._held.address != address:
            if self._held is not None:
                self._held.leave()
            left_s = max(deadline - time.monotonic(), 0.001)
            where = f"the learner's weight broadcast at {offer.host}:{offer.port}"
            advice = "see whether the learner lives, and that this machine reaches it"
            try:
                guest = within(left_s, lambda: Guest(address, timeout_s=left_s), waited_for=where, advice=advice)
            except DistError as error:
                raise DeadlineExceeded(waited_for=where, waited_s=left_s, advice=advice) from error
            self._held = _Held(address=address, guest=guest)
        return self._held

    def _seat(self, held: _Held, number: int, received: int, deadline: float) -> Seat:
        left_s = max(deadline - time.monotonic(), 0.001)
        try:
            seat = within(
                left_s,
                lambda: held.guest.ask(
                    publication=number,
                    member=self._member,
                    group=held.name,
                    num_received=received,
                    timeout_s=left_s,
                ),
                waited_for="a seat in the learner's weight broadcast",
                advice=_LOST,
            )
        except DistError as error:
            self._held = None
            raise _Broken(f"the learner's weight broadcast does not answer: {error}") from error
        if seat.refusal:
            raise WeightSyncError(seat.refusal)
        return seat

    def _group(self, held: _Held, seat: Seat) -> Group:
        if held.group is None or held.name != seat.group:
            held.leave()
            held.group = _enter(self._groups, seat.token, seat.rank, seat.world_size, self._patience)
            held.name = seat.group
        return held.group


class _Broken(WeightSyncError):
    """A round that ended before its last bucket."""


def _enter(groups: Groups, token: str, rank: int, world_size: int, patience: Patience) -> Group:
    try:
        return within(
            patience.join_s,
            lambda: groups.join(token, rank=rank, world_size=world_size),
            waited_for=f"{world_size - 1} receivers and the learner to form a group",
            advice=_LOST,
        )
    except RuntimeError as error:
        raise _Broken(f"a group of {world_size} was not formed: {error}") from error


def _exchange(group: Group, bucket: torch.Tensor, patience: Patience) -> None:
    try:
        within(
            patience.bucket_s,
            lambda: group.broadcast(bucket),
            waited_for=f"a bucket of {len(bucket)} bytes to reach every member",
            advice=_LOST,
        )
    except RuntimeError as error:
        raise _Broken(f"a bucket did not reach every member: {error}") from error
