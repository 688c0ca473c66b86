"""Reference logprobs are computed once, with the initial weights, and never used for other rows or weights."""

from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from services.contracts.errors import UserError
from services.contracts.preference_example import PreferenceExample
from services.contracts.records import Demonstration
from services.contracts.settings import ModelConfig
from services.control.reference_logprobs import REFERENCE_FILE, ReferenceLogprobs


class CountingLearner:
    """Gives each completion its number of tokens as logprob."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    async def answers(self, examples: Sequence[PreferenceExample]) -> list[float]:
        self.calls.append(len(examples))
        return [-float(len(one.token_ids)) for example in examples for one in example.completions]


def completion(length: int) -> Demonstration:
    return Demonstration(token_ids=array("i", [5] * length), loss_mask=array("b", [0] + [1] * (length - 1)))


def pairs(*lengths: tuple[int, int]) -> list[PreferenceExample]:
    return [
        PreferenceExample(row=row, completions=(completion(chosen), completion(rejected)))
        for row, (chosen, rejected) in enumerate(lengths)
    ]


async def complete(
    folder: Path, rows: Sequence[PreferenceExample], model: ModelConfig
) -> tuple[list[tuple[float, ...]], list[int]]:
    """The reference of each row, and the calls that it took."""
    learner = CountingLearner()
    reference = ReferenceLogprobs(folder, model, rows)
    reference.look()
    found = await reference.complete(learner, rows_per_call=2, tell=lambda line: None)  # type: ignore[arg-type]
    return [row.reference for row in found], learner.calls


@pytest.fixture
def model(tmp_path: Path) -> ModelConfig:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return ModelConfig(path=str(folder))


async def test_they_are_computed_in_parts_and_taken_from_the_file_afterwards(
    tmp_path: Path, model: ModelConfig
) -> None:
    rows = pairs((3, 4), (5, 6), (7, 8))
    expected = [(-3.0, -4.0), (-5.0, -6.0), (-7.0, -8.0)]
    assert await complete(tmp_path, rows, model) == (expected, [2, 1])
    assert await complete(tmp_path, rows, model) == (expected, [])


async def test_of_a_label_the_unrelated_completion_has_one_too(tmp_path: Path, model: ModelConfig) -> None:
    rows = [
        PreferenceExample(row=0, completions=(completion(3),), desirable=True, unrelated=completion(9)),
        PreferenceExample(row=1, completions=(completion(5),), desirable=False, unrelated=completion(2)),
    ]
    assert await complete(tmp_path, rows, model) == ([(-3.0, -9.0), (-5.0, -2.0)], [2, 2])


async def test_other_rows_and_damaged_files_are_computed_anew(tmp_path: Path, model: ModelConfig) -> None:
    await complete(tmp_path, pairs((3, 4)), model)
    assert await complete(tmp_path, pairs((3, 5)), model) == ([(-3.0, -5.0)], [1])
    (tmp_path / REFERENCE_FILE).write_bytes(b"half a file")
    assert await complete(tmp_path, pairs((3, 5)), model) == ([(-3.0, -5.0)], [1])
    assert await complete(tmp_path, pairs((3, 5)), model) == ([(-3.0, -5.0)], [])


async def test_other_weights_than_the_run_began_with_are_refused(tmp_path: Path, model: ModelConfig) -> None:
    await complete(tmp_path, pairs((3, 4)), model)
    (Path(model.path) / "model.safetensors").write_bytes(b"others!")
    with pytest.raises(UserError, match=r"holds logprobs of the model .* set model\.path and model\.dtype back"):
        await complete(tmp_path, pairs((3, 4)), model)
    (Path(model.path) / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(UserError, match=r"starts from .*float32"):
        await complete(tmp_path, pairs((3, 4)), model.model_copy(update={"dtype": "float32"}))


def test_a_row_has_a_number_for_each_sequence_or_none() -> None:
    (row,) = pairs((3, 4))
    with pytest.raises(ValueError, match="1 reference logprobs for 2"):
        replace(row, reference=(1.0,))
    with pytest.raises(ValueError, match="neither a pair nor a completion with a label"):
        replace(row, desirable=True)
