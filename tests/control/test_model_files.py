"""A model folder that lacks weights, or has a part of them only, is refused by its files alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from services.contracts.errors import UserError
from services.contracts.settings import ModelConfig
from services.control.model_files import check_weights
from services.control.preflight import load_tokenizer

WEIGHTS = "model.safetensors"


@pytest.fixture
def model(task: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(task / "model", tmp_path / "model"))


def remove(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def truncate(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])


def shard(folder: Path, *, names: tuple[str, ...] = ("a.safetensors",)) -> None:
    (folder / WEIGHTS).rename(folder / "a.safetensors")
    index = {"weight_map": {str(number): name for number, name in enumerate(names)}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def lose_a_shard(folder: Path) -> None:
    shard(folder, names=("a.safetensors", "b.safetensors"))


def damage_the_index(folder: Path) -> None:
    remove(folder)
    (folder / f"{WEIGHTS}.index.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove, "holds no weights"),
        (truncate, "model.safetensors is broken off or damaged"),
        (lose_a_shard, "lacks b.safetensors, which its index names"),
        (damage_the_index, "index.json is damaged"),
    ],
)
def test_an_interrupted_download_is_refused(spoil: Callable[[Path], None], message: str, model: Path) -> None:
    spoil(model)
    with pytest.raises(UserError, match=message):
        load_tokenizer(ModelConfig(path=str(model)))
    load_tokenizer(ModelConfig(path=str(model)), reads_weights=False)


def test_whole_weights_pass_in_one_file_or_in_shards(model: Path) -> None:
    check_weights(str(model), "model.path")
    shard(model)
    check_weights(str(model), "model.path")
    check_weights("owner/name", "model.path")
