"""Rewards put together from services that run elsewhere: values, outages, broken contracts, and what is described."""

import asyncio

import pytest

from reward_server.assembly import build_scorer
from reward_server.config import RewardServerConfig
from reward_server.function import RewardFunction
from reward_server.part_config import RewardServiceConfig
from reward_server.scorer import Scorer
from services.contracts.errors import UserError
from services.contracts.records import Failure, FailureCode, Reward
from services.protos.reward.v1 import reward_pb2
from services.transport.reward_client import RewardClient
from tests.reward_server.serving import IMPATIENT, completion_as_number, honest, make_samples, scripted, serving

TOKENS = RewardFunction(
    lambda sample: float(len(sample.token_ids)),
    name="theirs",
    needs_token_ids=True,
    minimum=0.0,
    maximum=9.0,
    gives_steps=True,
)
QUICK = {"timeout_s": 0.3, "max_attempts": 1, "unavailable_budget_s": 0.2, "backoff_initial_s": 0.01}


def remote(address: str, label: str, **settings: object) -> RewardServiceConfig:
    return RewardServiceConfig.model_validate(
        {"label": label, "remote": {"addresses": [address], **QUICK}, "weight": 0.5, **settings}
    )


def total(*services: RewardServiceConfig) -> Scorer:
    return build_scorer(services, RewardServerConfig())


async def test_a_server_can_put_together_what_others_serve() -> None:
    number = RewardFunction(completion_as_number, name="number", minimum=0.0, maximum=10.0)
    async with serving(number) as first, serving(TOKENS) as second:
        composite = total(remote(first, "number"), remote(second, "theirs", weight=1.0))
        async with serving(composite) as address:
            client = RewardClient([address], IMPATIENT)
            description = await client.describe()
            # Two calls whose samples have the same ids, and meet in one batch.
            once, again = await asyncio.gather(client.score(make_samples(3)), client.score(make_samples(3)))
            await client.close()
    assert (description.name, description.minimum, description.maximum) == ("number_theirs", 0.0, 14.0)
    assert description.needs_token_ids and description.gives_steps
    expected = [Reward(value=0.5 * n, components={"number": float(n), "theirs": 0.0}) for n in range(3)]
    assert once == again == expected


async def test_an_outage_of_a_remote_part_is_to_be_asked_again_or_skipped() -> None:
    local = RewardServiceConfig(name="exact_match")
    async with serving(RewardFunction(completion_as_number, name="number")) as address:
        strict, lenient = (total(local, remote(address, "n", on_failure=policy)) for policy in ("retry", "skip_part"))
        await asyncio.gather(strict.start(), lenient.start())
    (failure,) = await strict.score(make_samples(1))
    (reward,) = await lenient.score(make_samples(1))
    await asyncio.gather(strict.close(), lenient.close())
    assert isinstance(failure, Failure) and (failure.code, failure.retryable) == (FailureCode.UNAVAILABLE, True)
    assert failure.message.startswith("n: no answer") and address in failure.message
    assert reward == Reward(value=0.0, components={"exact_match": 0.0, "n/skipped": 1.0})


async def test_a_remote_part_that_never_answers_ends_at_its_own_deadline() -> None:
    async def never(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        await asyncio.sleep(60)
        return await honest(request)

    async with scripted(never) as (address, _):
        scorer = total(remote(address, "n"))
        await scorer.start()
        (failure,) = await asyncio.wait_for(scorer.score(make_samples(1)), 5.0)
        await scorer.close()
    assert isinstance(failure, Failure) and "within 0.3 s" in failure.message and failure.retryable


async def test_a_remote_part_that_breaks_the_contract_fails_its_samples_for_good() -> None:
    async def beyond(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        reward = reward_pb2.Reward(value=7.0)
        results = [reward_pb2.Result(sample_id=sample.id, reward=reward) for sample in request.samples]
        return reward_pb2.ScoreResponse(request_id=request.request_id, results=results)

    async with scripted(beyond) as (address, _):
        scorer = total(remote(address, "n"))
        await scorer.start()
        (failure,) = await scorer.score(make_samples(1))
        await scorer.close()
    assert isinstance(failure, Failure) and not failure.retryable
    assert "7.0 lies outside the declared range [0.0, 1.0]" in failure.message


async def test_a_remote_part_that_is_not_there_stops_the_server_before_it_listens() -> None:
    with pytest.raises(UserError, match=r"remote part of this reward cannot be used: no answer.*127\.0\.0\.1:1"):
        await total(remote("127.0.0.1:1", "n")).start()
