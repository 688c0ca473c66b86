"""One sandbox for the tests of a module."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from reward_server.sandbox.sandbox import Sandbox, SandboxLimits
from services.contracts.errors import UserError


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    sandbox = Sandbox(SandboxLimits(cpu_s=1, memory_bytes=256 << 20, file_bytes=4 << 20))
    try:
        await sandbox.start()
    except UserError as error:
        pytest.skip(str(error))
    yield sandbox
    await sandbox.close()
