"""A part of a reward that another server scores: any service that keeps the contract, by its address.

It must not know what the value is used for. Invariants: an outage of that service is a failure of its samples, to be
asked again, and a broken contract one for good; no call outlives the deadlines of its own section.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from reward_server.part_config import RemoteConfig
from services.contracts.errors import RewardContractError, RewardUnavailable, UserError
from services.contracts.records import Failure, FailureCode, Reward, RewardDescription, RewardSample
from services.transport.reward_client import RewardClient


class RemoteScorer:
    """Scores with the service at `config.addresses`, which describes itself when this starts."""

    batched = True
    """Fewer, larger calls cost less."""

    def __init__(self, config: RemoteConfig) -> None:
        self._config = config
        self._client = RewardClient(config.addresses, config)

    @property
    def description(self) -> RewardDescription:
        return self._client.description

    async def start(self) -> None:
        try:
            await self._client.describe()
        except (RewardUnavailable, RewardContractError) as error:
            raise UserError(f"a remote part of this reward cannot be used: {error}") from error

    async def close(self) -> None:
        await self._client.close()

    def counters(self) -> Mapping[str, float]:
        return {}  # That server has metrics of its own.

    async def score(self, samples: Sequence[RewardSample]) -> list[Reward | Failure]:
        # Samples of several requests come together here, and their ids need not differ.
        numbered = [replace(sample, id=str(number)) for number, sample in enumerate(samples)]
        try:
            return await self._client.score(numbered)
        except RewardUnavailable as error:
            return [Failure(code=FailureCode.UNAVAILABLE, message=str(error), retryable=True)] * len(samples)
        except RewardContractError as error:
            return [Failure(code=FailureCode.INTERNAL, message=str(error))] * len(samples)
