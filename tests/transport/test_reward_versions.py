"""Versions of a reward that changes while it is served: each score has one, and those of one group have the same."""

import itertools
from collections.abc import Sequence

import grpc
import pytest

from reward_server.config import RewardServerConfig
from reward_server.function import RewardFunction
from services.contracts.errors import RewardUnavailable
from services.contracts.records import Reward, RewardSample, RolloutGroup, ScoredGroup, reward_versions
from services.protos.reward.v1 import reward_pb2
from tests.fakes import make_prompt, make_rollout
from tests.reward_server.serving import (
    IMPATIENT,
    Connect,
    Reply,
    StatusError,
    failures,
    honest,
    make_samples,
    response,
    results,
    scripted,
    serving,
)


def named(versions: Sequence[str]) -> Reply:
    """Answers each call with the next version, and then with the last of them for ever."""
    following = itertools.chain(versions, itertools.repeat(versions[-1]))

    async def reply(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        answers = results(request)
        version = next(following)
        for answer in answers:
            answer.reward.version = version
        return response(request, answers)

    return reply


async def test_a_score_has_the_version_that_its_server_names_else_the_one_it_describes(connect: Connect) -> None:
    async with scripted(named(["b"]), version="a") as (address, _):
        told = await connect([address], IMPATIENT).score(make_samples(2))
    async with scripted(honest, version="a") as (address, _):
        described = await connect([address], IMPATIENT).score(make_samples(2))

    assert reward_versions(told) == ["b"]
    assert reward_versions(described) == ["a"]


async def test_servers_may_be_at_different_versions_for_a_while(connect: Connect) -> None:
    async with scripted(named(["a"])) as (old, _), scripted(named(["b"])) as (new, _):
        client = connect([old, new], IMPATIENT)
        scored = [await client.score(make_samples(2)) for _ in range(4)]

    assert [reward_versions(outcomes) for outcomes in scored] == [["a"], ["b"], ["a"], ["b"]]


async def test_a_group_that_a_new_version_came_into_is_scored_again(connect: Connect) -> None:
    async with scripted(named(["a", "b"]), max_batch_samples=2) as (address, service):
        outcomes = await connect([address], IMPATIENT).score(make_samples(4))

    assert reward_versions(outcomes) == ["b"]
    assert len(service.requests) == 4


async def test_a_group_of_several_calls_goes_to_one_of_the_servers_that_differ(connect: Connect) -> None:
    async with (
        scripted(named(["a"]), max_batch_samples=1) as (old, _),
        scripted(named(["b"]), max_batch_samples=1) as (new, _),
    ):
        client = connect([old, new], IMPATIENT)
        groups = [await client.score(make_samples(4)) for _ in range(4)]

    assert [len(reward_versions(outcomes)) for outcomes in groups] == [1] * 4


async def test_a_sample_that_fails_at_first_gets_the_version_of_its_group_where_servers_differ(
    connect: Connect,
) -> None:
    def failing_at_first(version: str) -> Reply:
        async def reply(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
            answer = await named([version])(request)
            if len(answer.results) > 1:
                answer.results[-1].CopyFrom(failures(request)[-1])
            return answer

        return reply

    async with scripted(failing_at_first("a")) as (old, _), scripted(failing_at_first("b")) as (new, _):
        outcomes = await connect([old, new], IMPATIENT).score(make_samples(4))

    assert len(reward_versions(outcomes)) == 1 and all(isinstance(outcome, Reward) for outcome in outcomes)


async def test_a_group_leaves_the_server_that_it_is_at_when_that_breaks_down(connect: Connect) -> None:
    num_answered = itertools.count()

    async def breaking_down(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        if next(num_answered) >= 2:
            raise StatusError(grpc.StatusCode.INTERNAL)
        return await named(["a"])(request)

    async with (
        scripted(breaking_down, max_batch_samples=1) as (broken, _),
        scripted(named(["b"]), max_batch_samples=1) as (sound, _),
    ):
        outcomes = await connect([broken, sound], IMPATIENT).score(make_samples(4))

    assert next(num_answered) > 2
    assert reward_versions(outcomes) == ["b"]


async def test_versions_that_never_agree_are_an_outage_that_names_both(connect: Connect) -> None:
    async with scripted(named(["a", "b"] * 1000), max_batch_samples=1) as (address, _):
        with pytest.raises(RewardUnavailable, match="scored by versions a, b"):
            await connect([address], IMPATIENT).score(make_samples(2))


async def test_a_server_answers_a_call_by_one_version_of_its_reward(connect: Connect) -> None:
    batches = itertools.count()

    def score(samples: Sequence[RewardSample]) -> list[Reward]:
        version = "a" if next(batches) < 1 else "b"
        return [Reward(value=1.0, version=version) for _ in samples]

    config = RewardServerConfig(port=0, drain_s=0.0, max_batch_samples=2, num_threads=1)
    async with serving(RewardFunction(score, batched=True), config) as address:
        outcomes = await connect([address], IMPATIENT).score(make_samples(4))

    assert reward_versions(outcomes) == ["b"]
    assert next(batches) == 4


def test_a_group_of_two_versions_cannot_be_made() -> None:
    prompt = make_prompt(0)
    group = RolloutGroup(prompt=prompt, rollouts=tuple(make_rollout(prompt, sample_index=i) for i in range(2)))

    with pytest.raises(ValueError, match=r"scored by versions \['a', 'b'\]"):
        ScoredGroup(group=group, rewards=(Reward(value=0.0, version="a"), Reward(value=0.0, version="b")))
