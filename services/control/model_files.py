"""Whether a local folder holds a model in Hugging Face format with all of its weights.

It must not import torch or read a weight: what it finds, it finds in names, headers and sizes. A hub name that is no
folder is none of its business.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from services.contracts.errors import UserError

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_AGAIN = "download or export it again"


def check_folder(path: str, setting: str) -> None:
    """Raise `UserError` where what can only be a folder has no config.json."""
    looks_local = path.startswith(("/", ".", "~")) or path.count("/") != 1
    if looks_local and not (Path(path) / "config.json").is_file():
        raise UserError(
            f"{setting} {path!r} is no folder with a config.json; give a folder in Hugging Face format, or a hub name"
        )


def check_weights(path: str, setting: str, *, otherwise: str = "") -> None:
    """Raise `UserError` where a folder's weights are missing, or broken off.

    Args:
        setting: what names the model.
        otherwise: what else can be done where there are none.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    files = _files(folder)
    if not files:
        raise UserError(
            f"{setting} {path!r} holds no weights (*.safetensors or pytorch_model*.bin); {_AGAIN}{otherwise}"
        )
    for file in files:
        if not file.is_file():
            raise UserError(f"{setting} {path!r} lacks {file.name}, which its index names; {_AGAIN}")
        if file.suffix == ".safetensors":
            _check_header(file, setting)


def _files(folder: Path) -> list[Path]:
    """Those that would be read, there or not."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    return sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is damaged ({error}); {_AGAIN}") from error
    return [index.with_name(name) for name in sorted(names)]


def _check_header(file: Path, setting: str) -> None:
    """Opening compares the places of all tensors with the file's size."""
    try:
        with safe_open(file, framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise UserError(f"{setting}: {file} is broken off or damaged ({error}); {_AGAIN}") from error
