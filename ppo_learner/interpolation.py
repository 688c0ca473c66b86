"""A model between two: θ = (1 − α)·θ_start + α·θ_end, tensor by tensor, from files to files.

WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903) averages a fine-tuned model with the one it began as; Lin et al. (2023,
arXiv 2309.06256) found that this pays most back of what RLHF makes a model forget.

It must not know what the models learnt. Invariants: no more than one tensor of each model is in memory; what is written
has the names, shapes, number formats and files of the end.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from services.contracts.errors import UserError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"

_LENGTH_BYTES = 8
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """Where a tensor lies, and what it is."""

    path: Path
    dtype: str
    shape: tuple[int, ...]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a model in Hugging Face format, by their names.

    Raises:
        UserError: there are none, or a file cannot be read.
    """
    found: dict[str, StoredTensor] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    stored = file.get_slice(name)
                    found[name] = StoredTensor(path=path, dtype=stored.get_dtype(), shape=tuple(stored.get_shape()))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read as safetensors: {error}; export or download it again") from error
    return found


def check_alike(start: Path, end: Path) -> None:
    """Raise `UserError` where the two have other tensors, and an average would be no model."""
    before, after = stored_tensors(start), stored_tensors(end)
    only = sorted(before.keys() ^ after.keys())
    if only:
        where = start if only[0] in before else end
        raise UserError(
            f"{len(only)} tensors are in one of the two models only, such as {only[0]} in {where}; average a model "
            "with the one that it was trained from"
        )
    for name, stored in after.items():
        if stored.shape != before[name].shape:
            raise UserError(
                f"tensor {name} has shape {list(before[name].shape)} in {start} and {list(stored.shape)} in {end}; "
                "average a model with the one that it was trained from"
            )
        for one in (before[name], stored):
            if one.dtype not in _FLOATS:
                raise UserError(
                    f"tensor {name} of {one.path} holds {one.dtype}, and only {', '.join(_FLOATS)} can be averaged; "
                    "give the weights as they were before they were quantised"
                )


def write_between(start: Path, end: Path, alpha: float, target: Path) -> None:
    """Write the weights between two models that are alike below `target`, in the files of the end.

    Args:
        alpha: 0 is the start, 1 the end, both bit for bit where they have the same number format.
    """
    sources = stored_tensors(start)
    for path in _weight_files(end):
        _write_file(path, sources, alpha, target / path.name)


def between(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    """(1 − α)·start + α·end, computed in float32 or better, in the number format of the end."""
    precise = torch.promote_types(torch.promote_types(start.dtype, end.dtype), torch.float32)
    return torch.lerp(start.to(precise), end.to(precise), alpha).to(end.dtype)


def _write_file(path: Path, sources: Mapping[str, StoredTensor], alpha: float, target: Path) -> None:
    """The same header as the end's file, and behind it other bytes at the same places."""
    header = _header(path)
    entries = json.loads(header[_LENGTH_BYTES:])
    names = sorted(entries.keys() - {"__metadata__"}, key=lambda name: entries[name]["data_offsets"])
    with safe_open(path, framework="pt") as after, target.open("wb") as out:
        out.write(header)
        for name in names:
            with safe_open(sources[name].path, framework="pt") as before:
                mixed = between(before.get_tensor(name), after.get_tensor(name), alpha)
            assert out.tell() == len(header) + entries[name]["data_offsets"][0], f"{path} has a gap before {name}"
            out.write(mixed.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        length = file.read(_LENGTH_BYTES)
        return length + file.read(int.from_bytes(length, "little"))


def _weight_files(folder: Path) -> list[Path]:
    """Those that transformers would load."""
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    index = folder / INDEX_FILE
    if index.is_file():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    adapter = (folder / "adapter_config.json").is_file()
    hint = (
        "it holds adapters alone; give the export beside them, into which they are merged"
        if adapter
        else ("give a model in Hugging Face format, such as the export of a run")
    )
    raise UserError(f"{folder} has neither {WEIGHTS_FILE} nor {INDEX_FILE}; {hint}")
