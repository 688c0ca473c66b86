"""Waiting groups come back from a checkpoint as they were, to the last bit."""

import tempfile
from array import array
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rollout_workers.prompts import PromptStream, RowOrder
from services.contracts.records import Message, Prompt, Reward, Rollout, RolloutGroup, ScoredGroup, StepReward
from services.control.rollout_buffer import Waiting
from services.control.saved_groups import read_groups, write_groups
from tests.fakes import make_prompt

STREAM = PromptStream([make_prompt(row) for row in range(7)], RowOrder(7, seed=3, shuffle=True))
MESSAGES = st.builds(Message, role=st.sampled_from(["assistant", "tool"]), content=st.text())
finite = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def rollouts(draw: st.DrawFn, prompt: Prompt, index: int) -> Rollout:
    num_tokens = draw(st.integers(0, 6))
    column = {"min_size": num_tokens, "max_size": num_tokens}
    return Rollout(
        prompt_id=prompt.id,
        sample_index=index,
        token_ids=array("i", draw(st.lists(st.integers(0, 2**31 - 1), **column))),
        logprobs=array("f", draw(st.lists(st.floats(width=32, allow_nan=False), **column))),
        policy_versions=array("i", draw(st.lists(st.integers(-1, 9), **column))),
        loss_mask=array("b", draw(st.lists(st.integers(0, 1), **column))),
        num_prompt_tokens=draw(st.integers(0, num_tokens)),
        completion=draw(st.text()),
        finish_reason=draw(st.sampled_from(["stop", "length", "abort"])),
        turns=tuple(draw(st.lists(MESSAGES, max_size=3))),
    )


@st.composite
def waiting_groups(draw: st.DrawFn) -> Waiting:
    position, num_samples = draw(st.integers(0, 40)), draw(st.integers(1, 3))
    prompt = STREAM.at(position)
    steps = st.builds(
        StepReward, start=st.integers(0, 9), end=st.integers(0, 9), value=finite, token=st.none() | st.integers(0, 9)
    )
    reward = st.builds(
        Reward,
        value=finite,
        components=st.dictionaries(st.text(), finite, max_size=2),
        steps=st.lists(steps, max_size=2).map(tuple),
    )
    group = RolloutGroup(prompt=prompt, rollouts=tuple(draw(rollouts(prompt, index)) for index in range(num_samples)))
    version = draw(st.text())
    rewards = tuple(replace(draw(reward), version=version) for _ in range(num_samples))
    deadline = draw(st.integers(0, 9))
    scored = ScoredGroup(group=group, rewards=rewards, baseline=draw(st.none() | finite))
    return Waiting(deadline=deadline, position=position, group=scored)


@given(st.lists(waiting_groups(), max_size=3))
def test_what_is_read_is_what_was_written(groups: list[Waiting]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "waiting.jsonl"
        write_groups(path, groups)
        read = read_groups(path, STREAM.at)
    assert read == tuple(groups)
    assert [waiting.group for waiting in read] == [waiting.group for waiting in groups]
    assert [waiting.group.reward_version for waiting in read] == [waiting.group.reward_version for waiting in groups]
    logprobs = [[rollout.logprobs.tobytes() for rollout in waiting.group.group.rollouts] for waiting in groups]
    assert [[rollout.logprobs.tobytes() for rollout in waiting.group.group.rollouts] for waiting in read] == logprobs


def test_a_position_of_the_stream_names_the_prompt_that_was_drawn_there() -> None:
    stream = PromptStream([make_prompt(row) for row in range(5)], RowOrder(5, seed=1, shuffle=True))
    drawn = [stream.draw() for _ in range(23)]
    assert [stream.at(position) for position in range(23)] == drawn
    assert [stream.at(position) for position in reversed(range(23))] == drawn[::-1]
    assert stream.position == 23
    later = PromptStream([make_prompt(row) for row in range(5)], RowOrder(5, seed=1, shuffle=True, position=23))
    assert (later.at(22), later.draw()) == (drawn[-1], stream.draw())
