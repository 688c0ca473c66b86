"""When a replica is ejected, and how it comes back."""

from services.transport.reward_standing import Rank, Standing


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def ejected(clock: Clock) -> Standing:
    standing = Standing(eject_after=2, eject_s=10.0, clock=clock)
    standing.missed()
    standing.missed()
    return standing


def test_only_misses_in_a_row_eject() -> None:
    standing = Standing(eject_after=2, eject_s=10.0)
    for _ in range(3):
        standing.missed()
        standing.answered()
    assert standing.rank is Rank.ON_DUTY
    standing.missed()
    standing.missed()
    assert standing.rank is Rank.OUT


def test_time_alone_does_not_bring_it_back() -> None:
    clock = Clock()
    standing = ejected(clock)
    clock.now += 1000.0
    assert standing.rank is Rank.OUT
    assert standing.wants_probe


def test_after_a_probe_it_sits_its_time_out() -> None:
    clock = Clock()
    standing = ejected(clock)
    standing.probed()
    assert standing.rank is Rank.SITTING_OUT
    clock.now += 10.0
    assert standing.rank is Rank.ON_DUTY


def test_it_is_tried_with_one_call_at_a_time_and_one_miss_ejects_it_again() -> None:
    clock = Clock()
    standing = ejected(clock)
    standing.probed()
    clock.now += 10.0
    with standing.call():
        assert standing.rank is Rank.OUT
        standing.missed()
    assert standing.wants_probe
    standing.probed()
    assert standing.rank is Rank.SITTING_OUT


def test_one_answer_restores_it() -> None:
    standing = ejected(Clock())
    standing.probed()
    standing.answered()
    with standing.call(), standing.call():
        assert standing.rank is Rank.ON_DUTY
    standing.missed()
    assert standing.rank is Rank.ON_DUTY
