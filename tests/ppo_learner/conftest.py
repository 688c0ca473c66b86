"""The tiny models that the learner's tests train, written once a session."""

from pathlib import Path

import pytest

from tests.tiny import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model whose head shares the embedding's weights."""
    return write_tiny_model(tmp_path_factory.mktemp("tied"))


@pytest.fixture(scope="session")
def untied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model whose head has weights of its own."""
    return write_tiny_model(tmp_path_factory.mktemp("untied"), tied=False)
