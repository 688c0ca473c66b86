"""Dialogues of a scripted policy with environments that answer, end it, fail, and hang."""

from __future__ import annotations

import asyncio
import threading
from array import array
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest

from rollout_workers.dialogue_tokens import DialogueTokens
from rollout_workers.dialogues import Dialogues
from rollout_workers.engine_thread import EngineThread
from rollout_workers.environment_config import EnvironmentConfig
from services.contracts.dialogue import Dialogue
from services.contracts.errors import EnvironmentFailed, WorkerLost
from services.contracts.records import NOT_SAMPLED, Message, Rollout, RolloutGroup, SampleRequest, Sampling
from tests.fakes import make_prompt
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer("abcdefghijklmnopqrstuvwxyz.+-")
PROMPT = make_prompt(0)


@dataclass(frozen=True)
class Said:
    token_ids: array[int]
    logprobs: array[float]
    policy_versions: array[int]
    finish_reason: str = "stop"


@dataclass
class Script(EngineThread):
    """Says what is written for each sample and turn, under a version that is the turn's number."""

    turns: Mapping[tuple[int, int], str] = field(default_factory=dict)
    cut: frozenset[tuple[int, int]] = frozenset()
    read: list[str] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    silent: bool = False
    futures: list[Future[Any]] = field(default_factory=list)

    def sample(self, request: SampleRequest, *, first: int = 0, turn: int = 0) -> Future[list[Any]]:
        future: Future[list[Any]] = Future()
        self.futures.append(future)
        self.read.append(TOKENIZER.decode(list(request.prompt.token_ids[len(PROMPT.token_ids) :])))
        self.left.append(request.sampling.max_completion_tokens)
        assert request.sampling.num_samples == 1
        if not self.silent:
            ids = array("i", TOKENIZER.encode(self.turns[first, turn]))
            said = Said(
                token_ids=ids,
                logprobs=array("f", [-1.0 - turn] * len(ids)),
                policy_versions=array("i", [turn] * len(ids)),
                finish_reason="length" if (first, turn) in self.cut else "stop",
            )
            future.set_result([said])
        return future


async def play(
    script: Script,
    environment: Callable[[Dialogue], Any],
    *,
    num_samples: int = 1,
    longest: int = 20,
    **settings: Any,
) -> RolloutGroup:
    config = EnvironmentConfig(name="test", **{"max_turns": 3} | settings)
    dialogues = Dialogues(config, environment, DialogueTokens(TOKENIZER, config.role))
    sampling = Sampling(num_samples=num_samples, max_completion_tokens=longest)
    return await dialogues.sample(script, SampleRequest(prompt=PROMPT, sampling=sampling))


def texts(rollout: Rollout) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in rollout.turns]


async def test_each_token_is_the_policys_or_the_environments() -> None:
    script = Script(turns={(0, 0): "ab", (0, 1): "c"})
    (rollout,) = (await play(script, lambda dialogue: "+-" if dialogue.number == 1 else None)).rollouts

    assert TOKENIZER.decode(list(rollout.token_ids[3:])) == rollout.completion == "ab+-c"
    assert list(rollout.loss_mask) == [0, 0, 0, 1, 1, 0, 0, 1]
    assert list(rollout.logprobs) == [0, 0, 0, -1, -1, 0, 0, -2]
    assert list(rollout.policy_versions) == [NOT_SAMPLED] * 3 + [0, 0, NOT_SAMPLED, NOT_SAMPLED, 1]
    assert texts(rollout) == [("assistant", "ab"), ("tool", "+-"), ("assistant", "c")]
    assert (rollout.num_turns, rollout.finish_reason) == (2, "stop")
    assert script.read == ["", "ab+-"]
    assert script.left == [20, 16]


async def test_the_environment_is_told_all_that_was_said_and_the_reference() -> None:
    heard: list[Dialogue] = []
    await play(
        Script(turns={(0, 0): "a", (0, 1): "b", (0, 2): "c"}),
        lambda dialogue: heard.append(dialogue) or "+",
        role="user",
    )
    assert [(dialogue.number, dialogue.said) for dialogue in heard] == [(1, "a"), (2, "b")]  # The third is the last.
    assert heard[1].turns[1] == Message(role="user", content="+")
    assert (heard[1].prompt, heard[1].reference) == (PROMPT.text, {"answer": "0"})


async def test_the_samples_of_a_group_go_each_their_own_way() -> None:
    script = Script(turns={(0, 0): "a", (1, 0): "b", (1, 1): "c"})
    group = await play(script, lambda dialogue: "+" if dialogue.said == "b" else None, num_samples=2)
    assert [(rollout.sample_index, rollout.completion) for rollout in group.rollouts] == [(0, "a"), (1, "b+c")]


async def test_a_turn_that_was_cut_is_not_answered() -> None:
    (rollout,) = (await play(Script(turns={(0, 0): "a"}, cut=frozenset({(0, 0)})), lambda dialogue: "+")).rollouts
    assert (rollout.completion, rollout.finish_reason) == ("a", "length")


@pytest.mark.parametrize(("longest", "completion"), [(4, "ab+c"), (3, "ab")])
async def test_an_answer_that_leaves_no_room_for_a_reply_is_not_read(longest: int, completion: str) -> None:
    script = Script(turns={(0, 0): "ab", (0, 1): "c"})
    (rollout,) = (await play(script, lambda dialogue: "+", longest=longest, max_turns=2)).rollouts
    assert rollout.completion == completion
    assert rollout.loss_mask[-1] == 1
    assert rollout.finish_reason == ("stop" if longest == 4 else "length")


async def test_an_answer_is_asked_for_again_after_an_exception() -> None:
    asked: list[int] = []

    def flaky(dialogue: Dialogue) -> str | None:
        asked.append(dialogue.number)
        if len(asked) == 1:
            raise ConnectionError("no route")
        return None

    (rollout,) = (await play(Script(turns={(0, 0): "a"}), flaky)).rollouts
    assert (asked, rollout.completion) == ([1, 1], "a")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (lambda dialogue: 1 / 0, r"turn 1 of prompt 0-0 did not come in 3 tries; the last: ZeroDivisionError"),
        (lambda dialogue: 7, r"the last: TypeError: 7 is neither text, .* nor None"),
        (lambda dialogue: "\ud800", r"the last: UserError: the answer: the text has a lone surrogate at character 0"),
    ],
)
async def test_an_answer_that_never_comes_is_not_made_up(environment: Callable[[Dialogue], Any], message: str) -> None:
    with pytest.raises(EnvironmentFailed, match=message):
        await play(Script(turns={(0, 0): "a"}), environment)


async def test_an_environment_that_hangs_fails_by_its_deadline() -> None:
    released = threading.Event()
    with pytest.raises(EnvironmentFailed, match=r"in 2 tries; the last: DeadlineExceeded: waited 0 s for the answer"):
        await asyncio.wait_for(
            play(
                Script(turns={(0, 0): "a"}),
                lambda dialogue: str(released.wait(30)),
                timeout_s=0.05,
                max_attempts=2,
            ),
            timeout=5,
        )
    released.set()


async def test_no_more_calls_than_allowed_are_made_at_once() -> None:
    now, most, lock = 0, 0, threading.Lock()

    def counted(dialogue: Dialogue) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.02)
        with lock:
            now -= 1

    await play(Script(turns={(index, 0): "a" for index in range(6)}), counted, num_samples=6, max_calls=2)
    assert most == 2


async def test_what_is_given_up_is_taken_back_from_the_engine() -> None:
    script = Script(silent=True)
    task = asyncio.ensure_future(play(script, lambda dialogue: None, num_samples=3))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [future.cancelled() for future in script.futures] == [True] * 3


async def test_an_engine_that_fails_in_one_dialogue_ends_the_group() -> None:
    script = Script(silent=True)
    task = asyncio.ensure_future(play(script, lambda dialogue: None, num_samples=2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    script.futures[0].set_exception(WorkerLost("gone"))
    with pytest.raises(WorkerLost, match="gone"):
        await task
    assert script.futures[1].cancelled()
