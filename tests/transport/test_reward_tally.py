"""What a run is told of its calls for rewards."""

import grpc

from services.contracts.records import Reward
from services.protos.reward.v1 import reward_pb2
from services.transport.reward_tally import RewardTally
from tests.reward_server.serving import IMPATIENT, Connect, StatusError, honest, make_samples, scripted


class Clock:
    """Shows the time that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_in_which_several_wait_counts_once_and_is_told_as_it_passes() -> None:
    clock = Clock()
    tally = RewardTally(clock)
    with tally.trying() as first_again:
        clock.now = 1.0
        first_again()
        with tally.trying() as second_again:
            clock.now = 3.0
            second_again()
            second_again()
            clock.now = 4.0
        clock.now = 6.0
        assert tally.lap()["reward_service/waited_seconds"] == 5.0
        clock.now = 6.5
    clock.now = 9.0
    assert tally.lap() == {
        "reward_service/calls": 0,
        "reward_service/retries": 0,
        "reward_service/waited_seconds": 0.5,
        "reward_service/ejections": 0,
    }


async def test_calls_retries_and_ejections_are_counted(connect: Connect) -> None:
    async def be_away_once(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        if len(service.requests) == 1:
            raise StatusError(grpc.StatusCode.UNAVAILABLE)
        return await honest(request)

    async with scripted(be_away_once) as (address, service):
        client = connect([address], IMPATIENT.model_copy(update={"unavailable_budget_s": 10.0}))
        assert await client.score(make_samples(2)) == [Reward(value=0.5)] * 2
        counted = client.tally.lap()

    assert counted["reward_service/calls"] == 2
    assert counted["reward_service/retries"] >= 1
    assert counted["reward_service/ejections"] == 1
    assert counted["reward_service/waited_seconds"] > 0
    assert set(client.tally.lap().values()) == {0}
