"""Which workers count as slow, and how often one that does is tried again."""

from hypothesis import given
from hypothesis import strategies as st

from rollout_workers.dispatch import Assignment, Dispatcher
from rollout_workers.paces import FIRST_TRIAL, Paces

TOKENS = 100


def paces(*seconds: float) -> Paces:
    """One worker after the other ended a request of a hundred tokens."""
    made = Paces()
    for worker, took in enumerate(seconds):
        made.learn(worker, seconds=took, num_tokens=TOKENS, others_ended=99)
    return made


def test_a_worker_is_slow_in_comparison_with_the_others_and_by_the_token() -> None:
    known = paces(1.0, 1.0, 10.0)
    assert [known.is_slow(worker) for worker in (0, 1, 2, 3)] == [False, False, True, False]
    known = paces(1.0, 1.0)
    known.learn(1, seconds=10.0, num_tokens=10 * TOKENS, others_ended=99)
    assert not known.is_slow(1)
    assert not paces(10.0).is_slow(0)


def test_what_takes_less_than_a_second_makes_no_worker_slow() -> None:
    assert not paces(0.09, 0.9).is_slow(1)
    assert paces(0.1, 1.0).is_slow(1)


def test_a_worker_is_not_slow_for_what_it_took_while_the_others_ended_nothing() -> None:
    known = paces(1.0, 1.0)
    for _ in range(99):
        known.learn(1, seconds=10.0, num_tokens=TOKENS, others_ended=2)
    assert not known.is_slow(1)
    known.learn(1, seconds=10.0, num_tokens=TOKENS, others_ended=3)
    assert known.is_slow(1)


def test_with_those_that_were_fast_gone_the_rest_are_not_slow() -> None:
    known = paces(1.0, 10.0)
    assert known.is_slow(1)
    known.forget(0)
    assert not known.is_slow(1)


def test_a_slow_worker_is_tried_ever_more_rarely_until_it_is_as_fast_as_the_others() -> None:
    known = paces(1.0, 10.0)
    for wait in (FIRST_TRIAL, 2 * FIRST_TRIAL, 4 * FIRST_TRIAL):
        for _ in range(wait):
            assert not known.is_wanted(1)
            known.learn(0, seconds=1.0, num_tokens=TOKENS, others_ended=99)
        assert known.is_wanted(1)
        known.give(1)
        assert not known.is_wanted(1)
        known.learn(1, seconds=10.0, num_tokens=TOKENS, others_ended=99)
    known.learn(1, seconds=1.0, num_tokens=TOKENS, others_ended=99)
    assert known.is_wanted(1)
    known.learn(1, seconds=30.0, num_tokens=TOKENS, others_ended=99)
    for _ in range(FIRST_TRIAL):
        assert not known.is_wanted(1)
        known.learn(0, seconds=1.0, num_tokens=TOKENS, others_ended=99)
    assert known.is_wanted(1)


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1e6), st.integers(1, 9999)), min_size=1))
def test_somebody_is_always_wanted(requests: list[tuple[int, float, int]]) -> None:
    known = Paces()
    for worker, seconds, num_tokens in requests:
        known.learn(worker, seconds=seconds, num_tokens=num_tokens, others_ended=99)
        assert any(known.is_wanted(worker) for worker, *_ in requests)
        assert any(not known.is_slow(worker) for worker, *_ in requests)


def test_requests_wait_for_a_fast_worker_while_a_slow_one_is_free_and_go_to_it_when_it_is_alone() -> None:
    dispatcher = Dispatcher(max_outstanding=1, max_attempts=1)

    def give() -> Assignment:
        dispatcher.submit()
        assignment = dispatcher.next_assignment()
        assert assignment is not None
        return assignment

    dispatcher.join(0)
    dispatcher.join(1)
    first, slow = give(), give()
    assert (first.worker, slow.worker) == (0, 1)
    for _ in range(3):
        assert dispatcher.end(first, seconds=1.0, num_tokens=TOKENS)
        first = give()
        assert first.worker == 0
    assert dispatcher.end(slow, seconds=10.0, num_tokens=TOKENS)
    assert dispatcher.is_slow(1)
    dispatcher.submit()
    assert dispatcher.next_assignment() is None
    dispatcher.drain(0)
    alone = dispatcher.next_assignment()
    assert alone is not None and alone.worker == 1
