"""One sandbox for the tests of a module."""

from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio

from services.contracts.errors import UserError
from services.processes.sandbox import LAUNCH, Sandbox, SandboxLimits


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    sandbox = Sandbox(SandboxLimits(cpu_s=1, memory_bytes=256 << 20, file_bytes=4 << 20))
    try:
        await sandbox.start()
    except UserError as error:
        pytest.skip(str(error))
    yield sandbox
    await sandbox.close()


@pytest.fixture
def launcher(sandbox: Sandbox) -> psutil.Process:
    """The process that starts the sandbox's programs; tests of other things may have left children beside it."""
    [launcher] = [child for child in psutil.Process().children() if LAUNCH in child.cmdline()]
    return launcher
