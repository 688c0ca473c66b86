"""Sampling with the real engine: logprobs, seeds, ends of completions."""

import asyncio
from typing import Any

import pytest
import torch

from services.contracts.errors import DeadlineExceeded, UserError
from services.contracts.records import NOT_SAMPLED, Rollout, RolloutGroup
from tests.rollout_workers.conftest import HostedWorker
from tests.rollout_workers.weights import largest_error, model_of, order, publish
from tests.tiny import tiny_tokenizer

SEED = 1
EOS = 1


@pytest.fixture
async def serving(worker: HostedWorker) -> HostedWorker:
    """The worker, with the weights of `SEED`."""
    await worker.load_weights(publish(worker, seed=SEED))
    return worker


def tokens(group: RolloutGroup) -> list[list[int]]:
    return [list(rollout.token_ids) for rollout in group.rollouts]


async def test_logprobs_are_those_of_the_same_model_in_transformers(serving: HostedWorker) -> None:
    group = await serving.sample(order(num_samples=8))

    assert max(largest_error(rollout, model_of(serving, SEED)) for rollout in group.rollouts) < 1e-5


async def test_logprobs_are_those_of_the_distribution_sampled_when_it_is_sharpened(serving: HostedWorker) -> None:
    group = await serving.sample(order(num_samples=8, temperature=0.7))

    model = model_of(serving, SEED)
    assert max(largest_error(rollout, model, temperature=0.7) for rollout in group.rollouts) < 1e-5
    assert max(largest_error(rollout, model) for rollout in group.rollouts) > 0.1


async def test_logprobs_are_those_of_the_distribution_sampled_when_it_is_cut(serving: HostedWorker) -> None:
    group = await serving.sample(order(num_samples=8, top_k=1))

    assert all(logprob == 0.0 for rollout in group.rollouts for logprob in rollout.logprobs)
    assert len({tuple(ids) for ids in tokens(group)}) == 1


async def test_more_prompts_than_fit_one_forward_pass_are_sampled(serving: HostedWorker) -> None:
    """A seeded completion whose prompt comes in two pieces ends vLLM's engine on a CPU."""
    prompts = [[2 + (row * 31 + index * 7) % 40 for index in range(450)] for row in range(30)]
    orders = [
        order(prompt, prompt_id=f"0-{row}", num_samples=1, max_completion_tokens=4)
        for row, prompt in enumerate(prompts)
    ]

    groups = await asyncio.gather(*map(serving.sample, orders))

    assert [group.rollouts[0].num_completion_tokens > 0 for group in groups] == [True] * 30


async def test_at_temperature_zero_the_most_likely_token_is_taken_with_its_logprob_at_temperature_one(
    serving: HostedWorker,
) -> None:
    (rollout,) = (await serving.sample(order(num_samples=1, temperature=0.0))).rollouts

    model = model_of(serving, SEED)
    with torch.no_grad():
        best = model(torch.tensor([list(rollout.token_ids)])).logits[0].argmax(-1).tolist()
    assert list(rollout.token_ids)[3:] == best[2:-1]
    assert largest_error(rollout, model) < 1e-5


async def test_the_columns_tell_prompt_and_sampled_tokens_apart(serving: HostedWorker) -> None:
    (rollout,) = (await serving.sample(order((5, 6, 7, 8), num_samples=1))).rollouts

    num_sampled = rollout.num_completion_tokens
    assert list(rollout.token_ids[:4]) == [5, 6, 7, 8]
    assert list(rollout.loss_mask) == [0] * 4 + [1] * num_sampled
    assert list(rollout.policy_versions[:4]) == [NOT_SAMPLED] * 4
    assert set(rollout.policy_versions[4:]) == {await serving.health()}
    assert list(rollout.logprobs[:4]) == [0.0] * 4
    assert all(logprob < 0 for logprob in rollout.logprobs[4:])


async def test_the_samples_of_a_group_differ_and_a_repeated_order_gives_them_again(serving: HostedWorker) -> None:
    first, second, other = await asyncio.gather(
        serving.sample(order()), serving.sample(order()), serving.sample(order(seed=4))
    )

    assert len({tuple(ids) for ids in tokens(first)}) == 4
    assert tokens(first) == tokens(second)
    assert tokens(first) != tokens(other)


async def test_tokens_do_not_depend_on_what_is_sampled_beside_them(serving: HostedWorker) -> None:
    orders = [order((5, 6, 7 + row), prompt_id=f"0-{row}") for row in range(6)]

    together = await asyncio.gather(*(serving.sample(one) for one in orders))
    reversed_order = await asyncio.gather(*(serving.sample(one) for one in reversed(orders)))
    alone = [await serving.sample(one) for one in orders]

    assert [tokens(group) for group in together] == [tokens(group) for group in alone]
    assert [tokens(group) for group in together] == [tokens(group) for group in reversed(reversed_order)]


async def test_a_completion_ends_with_the_end_of_sequence_or_at_its_limit(serving: HostedWorker) -> None:
    group = await serving.sample(order(num_samples=32))

    reasons = {rollout.finish_reason for rollout in group.rollouts}
    assert reasons == {"stop", "length"}
    for rollout in group.rollouts:
        ended = rollout.token_ids[-1] == EOS
        assert rollout.finish_reason == ("stop" if ended else "length")
        assert ended or rollout.num_completion_tokens == 24


async def test_the_completion_is_the_sampled_text_without_special_tokens(serving: HostedWorker) -> None:
    group = await serving.sample(order(num_samples=8))

    tokenizer = tiny_tokenizer()
    for rollout in group.rollouts:
        sampled = rollout.token_ids[rollout.num_prompt_tokens :]
        assert rollout.completion == tokenizer.decode(sampled, skip_special_tokens=True)
        assert "<eos>" not in rollout.completion


async def longest(worker: HostedWorker, **changes: Any) -> tuple[int, Rollout]:
    """The longest of 16 samples, and which it is."""
    group = await worker.sample(order(num_samples=16, **changes))
    return max(enumerate(group.rollouts), key=lambda numbered: len(numbered[1].completion))


async def test_a_stop_text_ends_a_completion_and_is_cut_from_its_text_but_not_from_its_tokens(
    serving: HostedWorker,
) -> None:
    index, whole = await longest(serving)
    stop = whole.completion[6:8]

    stopped = (await serving.sample(order(num_samples=16, stop=(stop,)))).rollouts[index]

    end = whole.completion.index(stop)
    assert stopped.completion == whole.completion[:end]
    assert stopped.finish_reason == "stop"
    assert stopped.num_completion_tokens == end + len(stop)
    assert stopped.token_ids == whole.token_ids[: len(stopped.token_ids)]


async def test_a_completion_that_is_nothing_but_a_stop_text_is_empty(serving: HostedWorker) -> None:
    index, whole = await longest(serving)
    stop = whole.completion[:2]

    stopped = (await serving.sample(order(num_samples=16, stop=(stop,)))).rollouts[index]

    assert (stopped.completion, stopped.num_completion_tokens) == ("", 2)


async def test_a_stop_token_ends_a_completion_and_is_no_part_of_its_text(serving: HostedWorker) -> None:
    index, whole = await longest(serving)
    stop = whole.token_ids[whole.num_prompt_tokens + 6]

    stopped = (await serving.sample(order(num_samples=16, stop_token_ids=(stop,)))).rollouts[index]

    assert stopped.token_ids[-1] == stop
    assert stopped.finish_reason == "stop"
    assert stopped.completion == whole.completion[: stopped.num_completion_tokens - 1]


async def test_a_completion_ends_where_the_model_does(serving: HostedWorker) -> None:
    group = await serving.sample(order([5] * 500, num_samples=4, max_completion_tokens=100))

    assert all(len(rollout.token_ids) <= 512 for rollout in group.rollouts)
    assert any(len(rollout.token_ids) == 512 for rollout in group.rollouts)


async def test_an_order_that_cannot_be_sampled_is_refused_and_the_worker_goes_on(serving: HostedWorker) -> None:
    with pytest.raises(UserError, match="512 tokens and the model takes 512"):
        await serving.sample(order([5] * 512))
    with pytest.raises(UserError, match="out of vocabulary"):
        await serving.sample(order([10_000]))
    with pytest.raises(UserError, match="empty string"):
        await serving.sample(order(stop=("",)))

    assert len((await serving.sample(order())).rollouts) == 4


async def test_a_probe_finds_an_engine_that_stands_still_in_a_process_that_does_not(serving: HostedWorker) -> None:
    version = await serving.health()
    await serving.host.hang.remote(serving.name, 4.0)
    with pytest.raises(DeadlineExceeded, match=r"waited 2 s for one token .*; replace this worker"):
        await serving.health()
    group = await serving.sample(order())
    assert len(group.rollouts) == 4
    assert await serving.health() == version
