"""Rewards in processes of their own: a hang, a crash or a hoard costs one sample, and the next is scored."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from reward_server import RewardFunction, serve
from reward_server.assembly import build_scorer
from reward_server.config import RewardServerConfig, RewardServiceConfig
from reward_server.scorer import Scorer
from services.contracts.errors import UserError
from services.contracts.records import Failure, FailureCode, Reward
from tests.reward_server.serving import make_sample, make_samples

HAZARDS = '''
"""A reward that does to its process whatever the completion says."""
import os, re, sys
from contextlib import asynccontextmanager
from reward_server import RewardFunction

def score(sample):
    print("noise on standard output")
    if sample.completion == "hang in C":
        re.match(r"(a+)+b", "a" * 64)      # Backtracks for ever and never lets go of the interpreter's lock.
    if sample.completion == "crash":
        os.abort()
    if sample.completion == "hoard":
        return float(len(bytearray(1 << 40)))
    if sample.completion == "raise":
        raise RuntimeError("told to")
    return float(os.getpid())

async def coroutine(sample):
    return 2.0

@asynccontextmanager
async def scale():
    global FACTOR
    FACTOR = 3.0
    yield

opened = RewardFunction(lambda sample: FACTOR, name="opened", opened=scale)

if os.environ.get("REFUSE_TO_LOAD"):
    raise RuntimeError("not here")
'''


@asynccontextmanager
async def isolated(path: Path, name: str = "score", *, timeout_s: float = 20.0) -> AsyncIterator[Scorer]:
    path.write_text(HAZARDS)
    service = RewardServiceConfig(name=f"{path}:{name}", isolate=True)
    config = RewardServerConfig(port=0, num_processes=1, timeout_s=timeout_s)
    scorer = build_scorer([service], config)
    await scorer.start()
    try:
        yield scorer
    finally:
        await scorer.close()


async def pid_of(scorer: Scorer) -> int:
    (outcome,) = await scorer.score([make_sample()])
    assert isinstance(outcome, Reward)
    return int(outcome.value)


async def test_a_reward_scores_in_another_process_that_ends_with_its_scorer(tmp_path: Path) -> None:
    async with isolated(tmp_path / "hazards.py") as scorer:
        outcomes = await scorer.score(make_samples(20))
        pid = await pid_of(scorer)

    assert pid != os.getpid()
    assert {outcome.value for outcome in outcomes if isinstance(outcome, Reward)} == {float(pid)}
    assert not psutil.pid_exists(pid)


async def test_a_hang_that_no_thread_could_end_costs_one_sample(tmp_path: Path) -> None:
    async with isolated(tmp_path / "hazards.py", timeout_s=0.5) as scorer:
        before = await pid_of(scorer)
        (outcome,) = await scorer.score([make_sample(completion="hang in C")])
        after = await pid_of(scorer)

    assert isinstance(outcome, Failure)
    assert outcome.code is FailureCode.TIMEOUT and outcome.retryable
    assert after != before
    assert not psutil.pid_exists(before)


async def test_a_crash_a_hoard_and_an_exception_are_failures_of_their_sample(tmp_path: Path) -> None:
    async with isolated(tmp_path / "hazards.py") as scorer:
        outcomes = await scorer.score([make_sample(completion=what) for what in ("crash", "hoard", "raise", "7")])

    crash, hoard, exception, fine = outcomes
    assert isinstance(crash, Failure) and "ended with code -6" in crash.message
    assert isinstance(hoard, Failure) and "MemoryError" in hoard.message
    assert isinstance(exception, Failure) and "RuntimeError: told to" in exception.message
    assert isinstance(fine, Reward)


async def test_an_async_reward_can_be_isolated(tmp_path: Path) -> None:
    async with isolated(tmp_path / "hazards.py", "coroutine") as scorer:
        (outcome,) = await scorer.score([make_sample()])

    assert isinstance(outcome, Reward) and outcome.value == 2.0


async def test_what_a_reward_opens_is_open_in_its_process(tmp_path: Path) -> None:
    async with isolated(tmp_path / "hazards.py", "opened") as scorer:
        outcomes = await scorer.score(make_samples(2))

    assert [outcome.value for outcome in outcomes if isinstance(outcome, Reward)] == [3.0, 3.0]


def test_a_reward_that_needs_a_process_of_its_own_is_not_served_by_its_author() -> None:
    with pytest.raises(UserError, match=r"isolate: true; .* trireme reward serve FILE.py:NAME"):
        serve(RewardFunction(lambda sample: 1.0, isolate=True))


async def test_a_reward_that_does_not_load_in_its_process_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "hazards.py"
    path.write_text(HAZARDS)
    service = RewardServiceConfig(name=f"{path}:score", isolate=True)
    scorer = build_scorer([service], RewardServerConfig(port=0, num_processes=1))
    monkeypatch.setenv("REFUSE_TO_LOAD", "1")

    with pytest.raises(UserError, match="did not load in a process of its own"):
        await scorer.start()
