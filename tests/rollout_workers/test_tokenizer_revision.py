"""Which revision of a tokenizer the engine reads."""

from pathlib import Path
from typing import Any

import pytest

from services.contracts.settings import ModelConfig
from tests.tiny import write_tiny_model


@pytest.mark.parametrize(("of_its_own", "expected"), [(False, "v2"), (True, "main")])
async def test_the_models_revision_is_that_of_its_own_tokenizer_alone(
    host: Any, tmp_path: Path, of_its_own: bool, expected: str
) -> None:
    folder = write_tiny_model(tmp_path / "model")
    tokenizer = str(write_tiny_model(tmp_path / "tokenizer")) if of_its_own else None
    model = ModelConfig(path=str(folder), revision="v2", tokenizer=tokenizer, dtype="float32")

    assert await host.tokenizer_revision.remote(model) == expected
