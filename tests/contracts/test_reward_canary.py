"""The canary of a reward model, as it is written and read again."""

from pathlib import Path

import pytest

from services.contracts.reward_model import CanarySample, read_canary, write_canary


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x1c", "\x0b", "\n", "\r", "ü"])
def test_a_canary_is_read_as_it_was_written(tmp_path: Path, character: str) -> None:
    samples = (
        CanarySample(prompt="a", completion=f"x{character}y", scores=(1.0,)),
        CanarySample(prompt=character, completion="z", scores=(0.5,)),
    )

    write_canary(tmp_path, samples)

    assert read_canary(tmp_path) == samples
