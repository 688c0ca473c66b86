"""Completions that are written down: in the order of the data, for a judge's job, and the best as demonstrations."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rollout_workers.demonstrations import load_demonstrations, stretches
from rollout_workers.prompts import DataConfig
from services.contracts.errors import SampleNotScorable, TriremeError
from services.contracts.records import Failure, FailureCode, Message, Reward, RolloutGroup, Sampling
from services.control.candidates import CandidatesConfig, load_pairs
from services.control.json_rows import write_rows
from services.control.sampling import SampledGroup, sample_groups, write_completions
from services.control.selection import BELOW, BEYOND, DUPLICATE, NOT_SCORED, UNFINISHED, SelectConfig, select
from tests.fakes import FakeRewards, FakeRollouts, make_prompt, make_rollout
from tests.tiny import tiny_tokenizer

REFUSED = Failure(code=FailureCode.INVALID_SAMPLE, message="no")


def sampled(row: int, *outcomes: tuple[str, float | Failure], cut: Sequence[int] = ()) -> SampledGroup:
    """The completions of a prompt with their rewards; those numbered in `cut` ended at the longest."""
    prompt = make_prompt(row)
    rollouts = tuple(
        replace(
            make_rollout(prompt, sample_index=index, completion=text),
            finish_reason="length" if index in cut else "stop",
        )
        for index, (text, _) in enumerate(outcomes)
    )
    rewards = [
        outcome if isinstance(outcome, Failure) else Reward(value=outcome, components={"half": outcome / 2})
        for _, outcome in outcomes
    ]
    return SampledGroup(group=RolloutGroup(prompt=prompt, rollouts=rollouts), outcomes=rewards)


def kept(groups: Sequence[SampledGroup], **settings: Any) -> list[tuple[int, str]]:
    selection = select(groups, SelectConfig(**settings), max_failed_prompts=1)
    assert len(selection.kept) + sum(selection.dropped.values()) == sum(len(one.group.rollouts) for one in groups)
    return [(one.prompt.row, one.rollout.completion) for one in selection.kept]


async def test_completions_are_written_in_the_order_of_the_data_and_make_pairs(tmp_path: Path) -> None:
    prompts = [make_prompt(row) for row in range(3)]
    prompts[1] = replace(prompts[1], messages=(Message(role="user", content="Why?"),))
    rollouts = FakeRollouts(delay=lambda row: 3 - row, complete=lambda prompt, index: f"{prompt.row}/{index}")
    sampling = Sampling(num_samples=2, max_completion_tokens=8)

    path = write_completions(await sample_groups(prompts, rollouts=rollouts, sampling=sampling), tmp_path)

    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[0] == {"prompt": "prompt 0", "completions": ["0/0", "0/1"], "reference": {"answer": "0"}}
    assert rows[1]["prompt"] == [{"role": "user", "content": "Why?"}]
    pairs = load_pairs(CandidatesConfig(rows=str(path), completions_field="completions"), seed=0)
    assert [{pair.first, pair.second} for pair in pairs] == [{f"{row}/0", f"{row}/1"} for row in range(3)]


async def test_scored_completions_are_written_with_their_rewards_and_a_failure_has_none(tmp_path: Path) -> None:
    rewards = FakeRewards(lambda sample: Reward(value=0.5) if sample.completion == "0" else REFUSED)
    groups = await sample_groups(
        [make_prompt(0)],
        rollouts=FakeRollouts(),
        sampling=Sampling(num_samples=2, max_completion_tokens=8),
        rewards=rewards,
    )
    assert json.loads(write_completions(groups, tmp_path).read_text())["rewards"] == [0.5, None]


def test_a_threshold_keeps_what_reaches_it_best_first() -> None:
    groups = [sampled(0, ("a", 0.5), ("b", 1.0), ("c", 0.4)), sampled(1, ("d", 0.1))]
    assert kept(groups, threshold=0.5) == [(0, "b"), (0, "a")]


def test_the_best_of_each_prompt_is_the_first_of_equal_ones() -> None:
    groups = [sampled(0, ("a", 0.5), ("b", 1.0), ("c", 1.0)), sampled(1, ("d", 0.1))]
    assert kept(groups, max_per_prompt=1) == [(0, "b"), (1, "d")]
    assert kept(groups, max_per_prompt=2) == [(0, "b"), (0, "c"), (1, "d")]


def test_a_component_can_be_what_counts_and_must_be_there() -> None:
    assert kept([sampled(0, ("a", 1.0), ("b", 2.0))], threshold=1.0, component="half") == [(0, "b")]
    with pytest.raises(SampleNotScorable, match=r"select.component is 'style', and the reward has \['half'\]"):
        kept([sampled(0, ("a", 1.0))], threshold=1.0, component="style")


def test_every_completion_that_is_left_out_is_counted_under_one_reason() -> None:
    group = sampled(
        0, ("a", 1.0), ("a", 1.0), ("b", 1.0), ("c", 1.0), ("d", 1.0), ("d", 0.0), ("e", REFUSED), cut=[4, 5]
    )
    config = SelectConfig(threshold=0.5, max_per_prompt=2)
    selection = select([group, sampled(1, ("x", 0.0))], config, max_failed_prompts=1)
    assert selection.dropped == {NOT_SCORED: 1, DUPLICATE: 1, BEYOND: 1, UNFINISHED: 2, BELOW: 1}
    assert selection.summary()["num_kept"] == 2
    assert (selection.num_prompts, selection.num_prompts_kept) == (2, 1)


def test_duplicates_and_unfinished_completions_can_be_kept() -> None:
    group = sampled(0, ("a", 1.0), ("a", 1.0), ("b", 1.0), cut=[2])
    assert kept([group], threshold=1.0, deduplicate=False, keep_unfinished=True) == [(0, "a"), (0, "a"), (0, "b")]


def test_too_many_failures_and_an_empty_selection_are_errors() -> None:
    failed = [sampled(row, ("a", REFUSED), ("b", 1.0)) for row in range(2)]
    with pytest.raises(SampleNotScorable, match=r"2 prompts could not be scored .* is 1; the last is row 1: no"):
        kept(failed, threshold=1.0)
    with pytest.raises(TriremeError, match=r"no completion of 1 prompts is left: 2 below select.threshold; loosen"):
        kept([sampled(0, ("a", 0.0), ("b", 0.5))], threshold=1.0)
    with pytest.raises(ValidationError, match="good and bad completions alike"):
        SelectConfig()


def test_supervised_training_reads_what_is_kept_as_it_is(tmp_path: Path) -> None:
    chat = sampled(0, ("four", 1.0))
    turns = (Message(role="user", content="two and two?"),)
    prompt = replace(chat.group.prompt, messages=turns, text="user: two and two? assistant:")
    groups = [replace(chat, group=replace(chat.group, prompt=prompt))]
    selection = select(groups, SelectConfig(threshold=1.0), max_failed_prompts=0)
    path = tmp_path / "demonstrations.jsonl"
    write_rows(path, [one.to_row() for one in selection.kept])
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}assistant "
    (demonstration,) = load_demonstrations(
        DataConfig(prompts=str(path), response_field="response"), tokenizer, max_length=99
    )
    texts = [tokenizer.decode(token_ids) for _, token_ids in stretches(demonstration)]
    assert texts == ["user two and two? assistant ", "four<eos>"]
