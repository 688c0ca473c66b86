"""Clients of reward services that are closed when their test ends."""

import pytest_asyncio

from tests.reward_server.serving import connecting

connect = pytest_asyncio.fixture(connecting)
