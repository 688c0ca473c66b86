"""What can be found wrong with a run's rewards before it starts: services that do not load, servers that do not answer.

A run itself finds both before anything expensive starts, as its reward service is the first of its parts. It must not
load a reward, which may be code of the user's, into this process.
"""

import asyncio
from collections.abc import Sequence

from reward_server.child import check_services
from reward_server.config import RewardConfig
from services.contracts.errors import RewardUnavailable, UserError
from services.control.config import RunConfig
from services.control.preflight import rewards_by_section
from services.control.reward_service import ANSWERS_WITHIN_S
from services.transport.reward_client import RewardClient

_LOOK_S = 3.0


def check_reward_services(config: RunConfig) -> None:
    """Load every reward that the run would serve, each section in a process of its own.

    Raises:
        UserError: a reward that does not exist or does not load.
        DeadlineExceeded: one that does not load in time.
    """
    for section, reward in rewards_by_section(config).items():
        if reward.services:
            try:
                check_services(reward.services, reward.server)
            except UserError as error:
                raise UserError(f"{section}.services: {error}") from error


def unanswered(config: RunConfig) -> Sequence[str]:
    """A line for each section none of whose addresses answers, which is no fault yet: its server may come later.

    Raises:
        UserError, RewardContractError: who answers does not let this client in, or is no reward service.
    """
    return asyncio.run(_unanswered(config))


async def _unanswered(config: RunConfig) -> Sequence[str]:
    rewards = {section: reward for section, reward in rewards_by_section(config).items() if reward.addresses}
    answered = await asyncio.gather(*map(_answers, rewards.values()))
    return [
        f"nobody answers at {', '.join(reward.addresses)} yet ({section}.addresses); a run waits {ANSWERS_WITHIN_S:g} s"
        for (section, reward), answers in zip(rewards.items(), answered, strict=True)
        if not answers
    ]


async def _answers(reward: RewardConfig) -> bool:
    hurried = reward.model_copy(update={"timeout_s": min(reward.timeout_s, _LOOK_S)})
    client = RewardClient(reward.addresses, hurried)
    try:
        await client.describe(budget_s=0.0)
    except RewardUnavailable:
        return False
    finally:
        await client.close()
    return True
