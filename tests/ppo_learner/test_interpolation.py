"""Weights between two models: numbers by hand, every number format, many files, and what is refused."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ppo_learner.interpolation import INDEX_FILE, between, check_alike, stored_tensors, write_between
from services.contracts.errors import UserError


def written(folder: Path, weights: Mapping[str, Tensor]) -> Path:
    folder.mkdir()
    save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def averaged(start: Path, end: Path, alpha: float, target: Path) -> dict[str, Tensor]:
    target.mkdir()
    write_between(start, end, alpha, target)
    return {name: tensor for path in target.glob("*.safetensors") for name, tensor in load_file(path).items()}


def random_weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    formats = {"embed": torch.float32, "norm": torch.float16, "head": torch.bfloat16, "scale": torch.float64}
    return {name: torch.randn(5, 3, generator=generator).to(dtype) for name, dtype in formats.items()}


def test_a_quarter_of_the_way_by_hand(tmp_path: Path) -> None:
    start = written(tmp_path / "start", {"w": torch.tensor([[1.0, -2.0]]), "scalar": torch.tensor(4.0)})
    end = written(tmp_path / "end", {"w": torch.tensor([[5.0, 2.0]]), "scalar": torch.tensor(0.0)})
    found = averaged(start, end, 0.25, tmp_path / "between")
    # 0.75·1 + 0.25·5 = 2, 0.75·(−2) + 0.25·2 = −1, 0.75·4 + 0.25·0 = 3.
    assert found["w"].tolist() == [[2.0, -1.0]] and found["scalar"].item() == 3.0


@pytest.mark.parametrize("alpha", [0.3, 0.9])
def test_every_number_format_agrees_with_numpy_in_double_precision(tmp_path: Path, alpha: float) -> None:
    start, end = random_weights(0), random_weights(1)
    found = averaged(written(tmp_path / "a", start), written(tmp_path / "b", end), alpha, tmp_path / "c")
    for name, mixed in found.items():
        assert mixed.dtype == end[name].dtype
        before, after = (np.asarray(one[name].double()) for one in (start, end))
        expected = (1 - alpha) * before + alpha * after
        rounding = torch.finfo(mixed.dtype).eps if mixed.dtype != torch.float64 else 1e-12
        np.testing.assert_allclose(mixed.double().numpy(), expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_at_either_end_are_the_models_themselves_bit_for_bit(tmp_path: Path, alpha: float) -> None:
    start, end = written(tmp_path / "a", random_weights(0)), written(tmp_path / "b", random_weights(1))
    averaged(start, end, alpha, tmp_path / "c")
    expected = (end if alpha else start) / "model.safetensors"
    assert (tmp_path / "c" / "model.safetensors").read_bytes() == expected.read_bytes()


def test_the_sum_is_made_in_float32_where_both_are_narrower() -> None:
    # In bfloat16 1 + 1/256 would be 1 before it were halved; the sum of both, 1 + 3/512, rounds to 1 + 1/128.
    start, end = torch.tensor([1.0], dtype=torch.float32), torch.tensor([1 + 3 / 256], dtype=torch.float32)
    assert between(start, end.bfloat16(), 0.5).item() == 1 + 1 / 128
    assert between(start.double(), end.double(), 0.5).dtype == torch.float64


def test_a_model_in_several_files_stays_in_them(tmp_path: Path) -> None:
    weights, others = random_weights(0), random_weights(1)
    start = written(tmp_path / "start", weights)
    end = tmp_path / "end"
    end.mkdir()
    files = {"model-1.safetensors": ["embed", "norm"], "model-2.safetensors": ["head", "scale"]}
    for file, names in files.items():
        save_file({name: others[name] for name in names}, end / file)
    (end / INDEX_FILE).write_text(json.dumps({"weight_map": {n: file for file, names in files.items() for n in names}}))
    save_file({"embed": torch.zeros(1)}, end / "consolidated.safetensors")
    check_alike(start, end)
    found = averaged(start, end, 0.5, tmp_path / "between")
    assert sorted(path.name for path in (tmp_path / "between").iterdir()) == sorted(files)
    assert torch.equal(found["head"], between(weights["head"], others["head"], 0.5))


def test_what_is_no_pair_is_refused(tmp_path: Path) -> None:
    start = written(tmp_path / "start", {"w": torch.zeros(2, 2), "b": torch.zeros(2)})
    with pytest.raises(UserError, match=r"1 tensors are in one of the two models only, such as b in .*start"):
        check_alike(start, written(tmp_path / "fewer", {"w": torch.zeros(2, 2)}))
    with pytest.raises(UserError, match=r"tensor w has shape \[2, 2\] in .*start and \[2, 3\]"):
        check_alike(start, written(tmp_path / "wider", {"w": torch.zeros(2, 3), "b": torch.zeros(2)}))
    with pytest.raises(UserError, match=r"tensor w of .* holds I8"):
        check_alike(start, written(tmp_path / "int8", {"w": torch.zeros(2, 2).to(torch.int8), "b": torch.zeros(2)}))
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"has neither .* it holds adapters alone; give the export beside them"):
        stored_tensors(tmp_path / "adapters")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "model.safetensors").write_bytes((start / "model.safetensors").read_bytes()[:40])
    with pytest.raises(UserError, match=r"cannot be read as safetensors"):
        stored_tensors(tmp_path / "torn")
