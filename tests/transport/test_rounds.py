"""Who takes part in the next round: the same group, a new one, or not yet."""

from services.transport.rounds import Ask, Roster, decide, newest_of_each, seats

ROSTER = Roster(group="g", members=("a", "b"))


def ask(ticket: int, member: str, *, group: str = "g", num_received: int = 0) -> Ask:
    return Ask(ticket=ticket, publication=0, member=member, group=group, num_received=num_received)


def test_the_same_members_go_on_at_once_in_their_group() -> None:
    assert decide([ask(0, "b"), ask(1, "a")], ROSTER, quiet_s=0.0, settle_s=1.0) == "same group"


def test_a_member_that_is_missing_is_waited_for_only_until_the_requests_settle() -> None:
    assert decide([ask(0, "a")], ROSTER, quiet_s=0.9, settle_s=1.0) == "wait"
    assert decide([ask(0, "a")], ROSTER, quiet_s=1.0, settle_s=1.0) == "new group"


def test_a_newcomer_or_a_member_that_lost_its_group_means_a_new_group() -> None:
    for asks in (
        [ask(0, "a"), ask(1, "b"), ask(2, "c", group="")],
        [ask(0, "a"), ask(1, "b", group="")],
        [ask(0, "a"), ask(1, "c")],
    ):
        assert decide(asks, ROSTER, quiet_s=1.0, settle_s=1.0) == "new group"


def test_the_first_group_is_made_of_whoever_asks() -> None:
    assert decide([ask(0, "a", group="")], None, quiet_s=1.0, settle_s=1.0) == "new group"
    assert decide([], None, quiet_s=9.0, settle_s=1.0) == "wait"


def test_of_a_receiver_that_asked_twice_the_last_request_counts() -> None:
    asks = newest_of_each([ask(0, "a"), ask(1, "b"), ask(2, "a", group="", num_received=3)])

    assert [(one.member, one.ticket) for one in asks] == [("b", 1), ("a", 2)]


def test_seats_keep_the_rosters_ranks_and_begin_with_the_first_bucket_that_anyone_lacks() -> None:
    given = seats([ask(5, "b", num_received=2), ask(6, "a", num_received=1)], ROSTER, token="t")

    assert (given[5].rank, given[6].rank) == (2, 1)
    assert {seat.world_size for seat in given.values()} == {3}
    assert {seat.first_bucket for seat in given.values()} == {1}
    assert {seat.token for seat in given.values()} == {"t"}
