"""A thousand runs of the real control plane on virtual time, each with faults of its own."""

import logging
from collections import Counter
from collections.abc import Iterator
from functools import cache

import pytest

from tests.simulation.run import simulate

NUM_SEEDS = 1000
_AT_ONCE = 50

MUST_HAPPEN = (
    "worker died idle",
    "worker died sampling",
    "worker died loading",
    "worker froze",
    "worker thawed",
    "worker refused weights",
    "weights torn for all workers",
    "weights changed under a running request",
    "attempt requeued",
    "late reply fenced",
    "deadline of one token",
    "deadline of a group",
    "launch failed",
    "no room",
    "sample refused by the reward",
    "prompt filtered",
    "reward outage waited out",
    "reward outage too long",
    "learner lost in step",
    "learner lost in publish",
    "learner lost in save",
    "learner failed in a step",
    "disk full",
    "controller killed",
    "autoscaler: one more",
    "autoscaler: one fewer",
    "operator: scale",
    "operator: pause",
    "operator: resume",
    "operator: drain",
    "operator: checkpoint",
    "operator: interrupt",
)


@cache
def outcome(seed: int) -> tuple[list[str], Counter[str]]:
    """What is wrong with the run of a seed, and its faults; every test of this file sees the same one."""
    result = simulate(seed)
    return result.wrong, result.faults


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of lost workers are not worth a line each."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("first", range(0, NUM_SEEDS, _AT_ONCE))
def test_a_run_survives_its_faults_and_keeps_every_promise(first: int) -> None:
    for seed in range(first, first + _AT_ONCE):
        wrong, _ = outcome(seed)
        if wrong:
            what = "\n".join(wrong)
            pytest.fail(f"seed {seed}: {what}\nsee it with: python -m tests.simulation {seed}", pytrace=False)


def test_the_same_seed_gives_the_same_run() -> None:
    for seed in range(8):
        first, second = simulate(seed), simulate(seed)
        assert first.endings == second.endings
        assert first.faults == second.faults
        assert [type(event) for event in first.events] == [type(event) for event in second.events]


def test_every_kind_of_fault_happens() -> None:
    happened: Counter[str] = Counter()
    for seed in range(NUM_SEEDS):
        happened += outcome(seed)[1]
        if all(happened[fault] for fault in MUST_HAPPEN):
            return
    raise AssertionError(f"these never happened: {[fault for fault in MUST_HAPPEN if not happened[fault]]}")
