"""Where a run's rewards come from: a server that it starts itself, or servers that run already.

It must not know how anything is scored. Invariant: when it yields, the service has described itself, so a wrong address
or reward stops a run before anything expensive starts.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from reward_server.child import RewardServerChild
from reward_server.config import RewardConfig
from services.transport.reward_client import RewardClient

LOG_FILE = "reward_server.log"
GOLD_LOG_FILE = "gold_server.log"
ANSWERS_WITHIN_S = 15.0


@asynccontextmanager
async def open_reward_service(
    config: RewardConfig, *, log_folder: Path, log_file: str = LOG_FILE
) -> AsyncIterator[RewardClient]:
    """Start the configured services, or connect to the configured addresses.

    Args:
        log_folder: receives the log of a server that is started here, under the name `log_file`.

    Raises:
        UserError: a reward that does not exist or does not load.
        RewardUnavailable, RewardContractError: no answer, or no reward service, at an address.
    """
    child = None
    if config.services:
        log_folder.mkdir(parents=True, exist_ok=True)
        # Not in a thread: the kernel ends the child with the thread that started it.
        child = RewardServerChild(config.services, config.server, log=log_folder / log_file)
    client = RewardClient([child.address] if child else config.addresses, config)
    try:
        await client.describe(budget_s=ANSWERS_WITHIN_S)
        yield client
    finally:
        await client.close()
        if child is not None:
            child.stop()
