"""Who takes part in the next round of a broadcast: a decision, without processes or sockets.

A receiver asks for a version; whoever asks takes part, and who has died asks for nothing. Invariants: a group is used
again only if every one of its members, and nobody else, asks and still holds it whole; nobody is waited for by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Decision = Literal["wait", "same group", "new group"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """One receiver's request for one publication.

    Attributes:
        ticket: the requests' order; a receiver whose round broke asks again and has a new one.
        publication: the number of the publication.
        member: the receiver's name.
        group: the group it holds, ready for use; "" where it has none.
        num_received: leading buckets that it has already.
    """

    ticket: int
    publication: int
    member: str
    group: str
    num_received: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Seat:
    """The answer: a place in a group, which sends every bucket from `first_bucket` on; or the reason why there is none.

    `token` is what a new member needs to enter the group.
    """

    group: str = ""
    rank: int = 0
    world_size: int = 0
    first_bucket: int = 0
    token: str = ""
    refusal: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Roster:
    """The sender's present group; its members in the order of their ranks, which begin at 1 (the sender is 0)."""

    group: str
    members: tuple[str, ...]


def newest_of_each(asks: Sequence[Ask]) -> list[Ask]:
    """The last request of each receiver, by ticket; nobody waits for an answer to those before it."""
    by_member = {ask.member: ask for ask in sorted(asks, key=lambda ask: ask.ticket)}
    return sorted(by_member.values(), key=lambda ask: ask.ticket)


def decide(asks: Sequence[Ask], roster: Roster | None, *, quiet_s: float, settle_s: float) -> Decision:
    """What to do about the requests for one publication.

    Args:
        asks: one of each receiver.
        roster: the group of the last round, if that went well.
        quiet_s: time since the last request came.
        settle_s: how long after it a group of other members is made; until then more may come.
    """
    if not asks:
        return "wait"
    holds_it = roster is not None and all(ask.group == roster.group for ask in asks)
    if roster is not None and holds_it and {ask.member for ask in asks} == set(roster.members):
        return "same group"
    return "new group" if quiet_s >= settle_s else "wait"


def seats(asks: Sequence[Ask], roster: Roster, *, token: str) -> dict[int, Seat]:
    """The seat of each request, by ticket. The round begins with the first bucket that anyone lacks."""
    first = min(ask.num_received for ask in asks)
    return {
        ask.ticket: Seat(
            group=roster.group,
            rank=roster.members.index(ask.member) + 1,
            world_size=len(roster.members) + 1,
            first_bucket=first,
            token=token,
        )
        for ask in asks
    }
