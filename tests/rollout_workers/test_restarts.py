"""The budget of replacements, on times of the test's choosing."""

from hypothesis import given
from hypothesis import strategies as st

from rollout_workers.restarts import LONGEST_PAUSE_S, RestartBudget


def test_a_window_allows_so_many_replacements_and_the_next_window_again() -> None:
    budget = RestartBudget(max_restarts=2, window_s=10.0)
    assert [budget.spend(now) for now in (0.0, 5.0, 9.9)] == [True, True, False]
    assert budget.spend(10.0)
    assert not budget.spend(14.9)
    assert budget.spend(15.0)


@given(st.integers(0, 4), st.lists(st.floats(0.0, 30.0), max_size=60))
def test_no_window_ever_has_more_replacements_than_allowed(most: int, pauses: list[float]) -> None:
    budget = RestartBudget(max_restarts=most, window_s=60.0)
    now, allowed = 0.0, []
    for pause in pauses:
        now += pause
        if budget.spend(now):
            allowed.append(now)
    for start in allowed:
        assert sum(start <= time < start + 60.0 for time in allowed) <= most


def test_the_pause_doubles_with_each_failure_in_a_row_up_to_a_bound() -> None:
    budget = RestartBudget(max_restarts=100, window_s=60.0)
    pauses = []
    for _ in range(12):
        budget.spend(0.0)
        pauses.append(budget.pause_s)
    assert pauses[:5] == [0.0, 0.5, 1.0, 2.0, 4.0]
    assert pauses[-1] == LONGEST_PAUSE_S
    budget.came_up()
    budget.spend(0.0)
    assert budget.pause_s == 0.0
