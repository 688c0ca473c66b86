"""The tiny models that the learner's tests train, written once a session."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny import write_tiny_model


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of so small a model mostly wait for each other where other processes want the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model whose head shares the embedding's weights."""
    return write_tiny_model(tmp_path_factory.mktemp("tied"))


@pytest.fixture(scope="session")
def untied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model whose head has weights of its own."""
    return write_tiny_model(tmp_path_factory.mktemp("untied"), tied=False)
